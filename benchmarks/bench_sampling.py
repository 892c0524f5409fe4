"""A sampling step at guidance 3 of our U-Nets beside imagen-pytorch's: seconds, FLOP, memory.

Ours is one batched pass; theirs is two passes. Both make steps of ancestral sampling with dynamic
thresholding, so that the ratio is that of one step, whatever number of steps a sampler needs.

python benchmarks/bench_sampling.py [--rounds N] [--all] [--only WORDS] [--alone] [--compile]
"""

import sys

from peer.compare import main

if __name__ == "__main__":
    sys.exit(main("sample", "A sampling step of our U-Nets beside imagen-pytorch's."))
