"""The shared sections of a config file, and where everything a project makes lives.

```
<out>/data/                 tar shards that `preencode import` wrote (or `data.tars`, used in place)
<out>/index/                what is inside each tar: offsets, keys, held-out flags, quarantine
<out>/embeddings/<fp>/      embedding shards of the encoder with fingerprint <fp>
<out>/prepared/<member>/    the images at a member's size, if data.prepare
<out>/<member>/             run directory of one U-Net: config, log, checkpoints, snapshots
<out>/cascade/              the newest assembled cascade: what `imagen sample --cascade` takes
<out>/eval/<images>-<fp>/   grid.png, metrics.json, report.html
<out>/published/            the cascade with its card, for others, unless publish.to is elsewhere
<out>/logs/                 output of stages that ran side by side
<out>/submitted/            the resolved configs that jobs on a cluster were given
```
"""

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from imagen import storage
from imagen.data.images import CHANNELS, told
from imagen.data.resize import Target
from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.text.config import TextConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the captioned images are and which of them are held out."""

    tars: str = ""
    """Folder or URL of WebDataset tar shards, read only; empty: `<out>/data`."""
    heldout: float = 0.05
    """Share of the samples kept from training, chosen by a hash of the key."""
    prepare: bool = False
    """Train from images that `preencode prepare` has brought to each member's size, once."""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout < 1:
            raise ConfigError(f"heldout {self.heldout} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectConfig:
    """What all stages share. A stage's own config extends it with the stage's section."""

    name: str
    """Title of reports."""
    out: str
    """Folder or URL below which everything is written."""
    seed: int = 0
    """Decides order, noise and every other draw, in [0, 2^32)."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set."""
    text: TextConfig = field(default_factory=TextConfig)
    """The frozen text encoder."""
    members: dict[str, MemberConfig]
    """The U-Nets of the cascade, in order: base, sr1, sr2."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed {self.seed} is not in [0, 2^32)")
        check_chain(self.members, self.text)
        check_captioned(self.members)

    @property
    def tars(self) -> str:
        """Folder of the tar shards."""
        return self.data.tars or storage.join(self.out, "data")

    @property
    def index(self) -> str:
        """Folder of the prepared data set's index."""
        return storage.join(self.out, "index")

    @property
    def embeddings(self) -> str:
        """Folder that holds one folder of embedding shards for each encoder fingerprint."""
        return storage.join(self.out, "embeddings")

    @property
    def prepared(self) -> str:
        """Folder that holds one folder of prepared images for each member."""
        return storage.join(self.out, "prepared")

    def prepared_dir(self, member: str) -> str:
        """Folder of the images at one member's size."""
        return storage.join(self.prepared, member)

    def target(self, member: str) -> Target:
        """What the images of a member are prepared for."""
        config = self.members[member]
        return Target(config.shape, config.network.channels)

    def run_dir(self, member: str) -> str:
        """Run directory of one member's training."""
        return storage.join(self.out, member)

    @property
    def cascade(self) -> str:
        """Folder of the assembled cascade."""
        return storage.join(self.out, "cascade")

    @property
    def evals(self) -> str:
        """Folder that holds one folder for each evaluation."""
        return storage.join(self.out, "eval")

    def previous_shape(self, member: str) -> tuple[int, int] | None:
        """(height, width) in pixels of the image that conditions a member; None for the base."""
        names = list(self.members)
        at = names.index(member)
        return self.members[names[at - 1]].shape if at else None


P = TypeVar("P", bound=ProjectConfig)


def absolute(config: P) -> P:
    """Return a config whose local paths mean the same in any process's folder."""

    data = replace(config.data, tars=absolute_path(config.data.tars))
    return replace(config, out=absolute_path(config.out), data=data)


def absolute_path(path: str) -> str:
    """Return a path that means the same in any process's folder; "" and URLs stay as they are."""
    local = path and storage.is_local(path)
    return os.path.abspath(storage.local(path)) if local else path.rstrip("/")


def check_chain(members: dict[str, MemberConfig], text: TextConfig) -> None:
    """Raise ConfigError unless the members form a cascade: base, sr1, sr2, growing in size."""
    wanted = ["base", *(f"sr{i}" for i in range(1, len(members)))]
    if not members or list(members) != wanted:
        raise ConfigError(
            f"members are {list(members)}, a cascade has base, sr1, sr2 in this order"
        )
    _check_shapes(members)
    if len({m.network.channels for m in members.values()}) > 1:
        raise ConfigError("members differ in `network.channels`; a cascade has one number")
    for name, member in members.items():
        if (member.network.kind == "efficient") != (name != "base"):
            raise ConfigError(
                f"member {name} has network.kind {member.network.kind!r}",
                "base is 'base'; super-resolution members are 'efficient'",
            )
        if text.dim is not None and member.network.text_dim not in (0, text.dim):
            raise ConfigError(
                f"member {name} has network.text_dim {member.network.text_dim}, the encoder "
                f"{text.encoder} is {text.dim} wide",
                f"set members.{name}.network.text_dim={text.dim}",
            )


def _check_shapes(members: dict[str, MemberConfig]) -> None:
    """Raise ConfigError unless members grow and have one aspect ratio."""
    sizes = [size_of(m.shape) for m in members.values()]
    shapes = [m.shape for m in members.values()]
    if any(b <= a for few, more in pairwise(shapes) for a, b in zip(few, more, strict=True)):
        raise ConfigError(f"member sizes {sizes} do not grow from base to the last member")
    height, width = shapes[0]
    for name, (h, w) in zip(members, shapes, strict=True):
        if h * width != w * height:
            raise ConfigError(
                f"member {name} is {told(h, w)} px, which is not the aspect ratio of base, "
                f"{told(height, width)} px",
                "all members show the same cut of a picture: multiply both sides by one number",
            )


def size_of(shape: tuple[int, int]) -> int | list[int]:
    """Return a shape as configs and files have it: one number for a square, else [h, w]."""
    return shape[0] if shape[0] == shape[1] else list(shape)


def check_captioned(members: dict[str, MemberConfig]) -> None:
    """Raise ConfigError for members that need more than captioned images, which stages have."""
    for name, member in members.items():
        network = member.network
        if network.channels not in CHANNELS:
            raise ConfigError(
                f"member {name} has network.channels {network.channels}, data sets are images of "
                f"{' or '.join(map(str, CHANNELS))} channels (grey or colour)",
                "for other data, train with the library: imagen.member.loss()",
            )
        for key, what in (("num_classes", "class labels"), ("image_channels", "second image")):
            if getattr(network, key):
                raise ConfigError(
                    f"member {name} has network.{key} {getattr(network, key)}, but a data set of "
                    f"captioned images has no {what}",
                    f"set members.{name}.network.{key}=0, or train with the library: "
                    "imagen.member.loss()",
                )
