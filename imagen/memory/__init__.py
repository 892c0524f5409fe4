"""How much memory training and sampling a member need, without running either.

training(MEMBER, Setting(images=16, precision="bf16")).total        # bytes
training_curve(MEMBER, Setting(precision="bf16")).at(64).largest    # the largest activation
"""

from imagen.memory.estimate import sampling, sampling_curve, training, training_curve
from imagen.memory.usage import GB, Setting, Usage

__all__ = ["GB", "Setting", "Usage", "sampling", "sampling_curve", "training", "training_curve"]
