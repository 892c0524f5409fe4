"""Configuration of the train stage."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from imagen.errors import ConfigError
from imagen.project import ProjectConfig
from train import crops


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one member is trained. All lengths are in images, so none depends on the batch size."""

    images: int
    """Images to train on, in total, repeats counted; rounded up to whole global batches."""
    global_batch: int
    """Images of one optimizer step over all workers; constant for a run."""
    microbatch: int
    """Most images of one forward pass on one worker."""
    workers: tuple[int, int] = (1, 1)
    """Fewest and most workers; a run starts with what there is and grows and shrinks."""
    loader_workers: int = 0
    """Processes that load data for each worker; 0: the worker itself."""
    lanes: int = 8
    """Parallel lanes of the sample order; a divisor of `global_batch`, and at least one a node."""
    window: int = 4096
    """Samples that a lane shuffles at a time."""
    lr: float = 1e-4
    """Learning rate after warm-up."""
    warmup_images: int = 0
    """Images over which the learning rate rises from 0."""
    decay_images: int = 0
    """Images at the end over which the learning rate falls to 0; 0: constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's first and second moments, a step."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, for matrices and convolutions."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all weights; a larger one is scaled down."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor keeps row and column means in place of second moments: less memory."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the fall over `decay_images`."""
    ema_sigma_rel: float = 0.1
    """Width of the power-function EMA as a share of the run, in (0, 0.28)."""
    ema_halflife_images: int = 0
    """Above 0: an exponential EMA with this half-life in place of the power-function one."""
    ema_profiles: tuple[float, ...] = ()
    """Widths of power-function EMAs that are kept in each snapshot beside the one above; from two
    of them `python -m train ema` makes an EMA of any width after the training."""
    caption_drop: float = 0.1
    """Probability that a sample is trained without its text, in [0, 1)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's matrix products; weights, optimizer, EMA and loss are float32 always."""
    compile: bool = False
    """Compile the network's blocks: the first steps take minutes, the others less time."""
    checkpoint_levels: tuple[int, ...] = ()
    """Levels that are computed again in the backward pass, to save memory; 0 = full resolution."""
    flip: float = 0.0
    """Probability that a sample is mirrored left to right, in [0, 1]; captions stay as they are."""
    init_from: str = ""
    """Snapshot folder whose weights the run starts from; empty: random weights of the seed."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the whole member; fsdp: weights, gradients, optimizer and EMA are cut
    among the workers (FSDP2), for members that do not fit a card."""
    crop_px: int = 0
    """Side of the random crops that a super-resolution member is trained on; 0: whole pictures."""
    checkpoint_every: int
    """Images between checkpoints: what a crash can lose."""
    snapshot_every: int
    """Images between snapshots of the EMA weights; there is one at the end in any case."""
    log_every: int
    """Images between lines of log.jsonl."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""
    milestone_every: int = 0
    """Images between checkpoints and snapshots that are kept for ever; 0: none are."""
    keep_snapshots: int = 0
    """Newest snapshots that are kept, beside the best by validation; 0: all."""
    validate: int = 256
    """Most held-out samples that each snapshot is validated on, with fixed noise; 0: none."""
    grid: int = 8
    """Held-out captions that each snapshot draws a picture of, from step 0 on; 0: none."""
    cache_gb: float = 50.0
    """Local room, in 10^9 bytes a machine, for copies of remote tars and embeddings."""
    audit: bool = False
    """Write the keys of each step to `audit/`, to prove which samples made up which batch."""
    wandb: str = ""
    """Weights & Biases project that the curves go to, too; empty: none."""

    def __post_init__(self) -> None:
        self._check_counts()
        for key in ("caption_drop", "betas"):
            value = getattr(self, key)
            for part in value if isinstance(value, tuple) else (value,):
                if not 0 <= part < 1:
                    raise ConfigError(f"{key} {part} is not in [0, 1)")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip {self.flip} is not in [0, 1]")
        for key in ("lr", "clip_norm", "cache_gb"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} {getattr(self, key)} is not above 0")
        self._check_ema()

        if (self.optimizer, self.parallel) == ("adafactor", "fsdp"):
            raise ConfigError(
                "optimizer adafactor cannot be cut among workers (parallel fsdp): PyTorch's needs "
                "whole rows and columns",
                "set parallel=ddp, or optimizer=adamw",
            )

    def _check_ema(self) -> None:
        widths = [("ema_sigma_rel", self.ema_sigma_rel)]
        for key, width in widths + [("ema_profiles", width) for width in self.ema_profiles]:
            if not 0 < width < 0.28:
                raise ConfigError(
                    f"{key} {width} is not in (0, 0.28)",
                    "a power function has no wider profile; 0.05 to 0.2 is usual",
                )
        if any(b <= a for a, b in pairwise(self.ema_profiles)) or len(self.ema_profiles) == 1:
            raise ConfigError(
                f"ema_profiles {list(self.ema_profiles)} are not two or more rising widths",
                "0.05 and 0.10 are what EDM2 keeps",
            )

    def _check_counts(self) -> None:
        counts = ("images", "global_batch", "microbatch", "lanes", "window")
        intervals = ("checkpoint_every", "snapshot_every", "log_every", "keep_checkpoints")
        for key in (*counts, *intervals):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} {getattr(self, key)} is less than 1")
        lengths = ("warmup_images", "decay_images", "ema_halflife_images", "milestone_every")
        others = ("loader_workers", "weight_decay", "crop_px", "keep_snapshots", "validate", "grid")
        for key in (*lengths, *others):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} {getattr(self, key)} is negative")
        levels = self.checkpoint_levels
        if any(b <= a for a, b in pairwise((-1, *levels))):
            raise ConfigError(f"checkpoint_levels {list(levels)} are not levels in rising order")
        fewest, most = self.workers
        if not 1 <= fewest <= most <= self.global_batch:
            raise ConfigError(
                f"workers {list(self.workers)} are not two numbers with "
                f"1 <= fewest <= most <= global_batch {self.global_batch}"
            )
        if self.global_batch % self.lanes:
            raise ConfigError(
                f"global_batch {self.global_batch} is no multiple of lanes {self.lanes}",
                "every lane gives the same number of samples to a global batch",
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.images // self.global_batch)

    @property
    def total(self) -> int:
        """Images of the whole run: `images` rounded up to whole global batches."""
        return self.steps * self.global_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStageConfig(ProjectConfig):
    """A project with its `train` section."""

    train: dict[str, TrainConfig] = field(default_factory=dict)
    """How each member is trained."""

    def __post_init__(self) -> None:
        ProjectConfig.__post_init__(self)
        unknown = [name for name in self.train if name not in self.members]
        if unknown:
            raise ConfigError(
                f"train has a section `{unknown[0]}`, which is no member of the cascade",
                f"members: {', '.join(self.members)}",
            )
        for name in self.train:
            self._check_member(name)

    def _check_member(self, name: str) -> None:
        member, train = self.members[name], self.train[name]
        levels = len(member.network.widths)
        if train.checkpoint_levels and train.checkpoint_levels[-1] >= levels:
            raise ConfigError(
                f"train.{name}.checkpoint_levels {list(train.checkpoint_levels)} names a level "
                f"that its network of {levels} levels does not have",
                f"levels are 0 to {levels - 1}",
            )
        if train.crop_px:
            crops.check(name, member, self.previous_shape(name), train.crop_px)

    def of(self, member: str) -> TrainConfig:
        """Return how `member` is trained. Raises ConfigError."""
        if member not in self.members:
            raise ConfigError(
                f"member `{member}` is not in the config", f"members: {', '.join(self.members)}"
            )
        if member not in self.train:
            raise ConfigError(
                f"the config has no section `train.{member}`",
                f"add one; it has: {', '.join(self.train) or 'none'}",
            )
        return self.train[member]
