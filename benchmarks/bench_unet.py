"""A training step of our U-Nets beside imagen-pytorch's: seconds, FLOP and memory.

python benchmarks/bench_unet.py [--rounds N] [--all] [--only WORDS] [--alone] [--compile]
"""

import sys

from peer.compare import main

if __name__ == "__main__":
    sys.exit(main("train", "A training step of our U-Nets beside imagen-pytorch's."))
