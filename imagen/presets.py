"""Members of known sizes, from the paper's to ones that train on a laptop, and their cascades.

`base64`, `sr256` and `sr1024` have the hyper-parameters of Imagen (Saharia et al.,
arXiv:2205.11487, App. F.1 to F.3): widths, blocks, where there is attention, 64 channels a
head (8 heads in the super-resolution members), schedules, dropout 0. The paper has 2 B, 600 M and
400 M parameters (Sec. 4.1). Ours differ, since it leaves the following open:

- `base64`, 2.03 B: it adapts Dhariwal & Nichol's U-Net, which has attention after each residual
  block and in the middle; so here 3 layers of attention end a level with 3 blocks. `cond_dim` is
  theirs, 4 times the narrowest width. Text enters its attention levels twice, joined to
  self-attention and by cross-attention (205 M); the paper joins it there only. Their up path has
  one block more in each level and resamples in residual blocks, where we use one convolution.
- `sr256`, 589 M: as App. F.2.
- `sr1024`, 424 M: App. F.3 asks for the blocks of `sr256`, 2-4-8-8. That is 400 M only if skips
  enter a level once and are added; here each block sees its own, joined to its channels, which
  makes 578 M. So the lowest level has 5 blocks.

All predict v, not eps: it was the best at the toy sizes that could be measured. The others follow
the same shapes: `-l`, `-m` and `-s` are for training on a GPU of 80, 24 and 12 GB, `-tiny` for
minutes on a CPU. `imagen plan` says what each needs.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from imagen.errors import ConfigError
from imagen.member import DiffusionConfig, MemberConfig
from imagen.network.config import UNetConfig
from imagen.text.config import TINY_T5, TINY_T5_DIM


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One member by name."""

    name: str
    """Kind, size in pixels and variant."""
    summary: str
    """What it is for, one line."""
    member: MemberConfig
    """What to put into a config."""
    parameters: int
    """Number of its weights."""
    encoder: str
    """Text encoder of its width."""
    crop_px: int = 0
    """Side of the random crops to train it on (`train.<member>.crop_px`); 0 = whole images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadePreset:
    """Members that belong together."""

    name: str
    """What it is for."""
    summary: str
    """One line."""
    presets: tuple[str, ...]
    """Names of base, sr1, sr2."""

    @property
    def encoder(self) -> str:
        """Text encoder of its members."""
        return PRESETS[self.presets[0]].encoder

    @property
    def members(self) -> dict[str, MemberConfig]:
        """The `members` section of a config."""
        return as_members([PRESETS[name] for name in self.presets])


def as_members(presets: list[Preset]) -> dict[str, MemberConfig]:
    """Return members in the order of a cascade, named as there: base, sr1, sr2."""
    names = ["base", *(f"sr{i}" for i in range(1, len(presets)))]
    return {name: preset.member for name, preset in zip(names, presets, strict=True)}


def find(name: str) -> Preset:
    """Return a preset by name. Raises ConfigError."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, [*PRESETS, *CASCADES], n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"presets: {', '.join(PRESETS)}"
    raise ConfigError(f"there is no preset `{name}`", hint)


def _member(
    kind: Literal["base", "efficient"],
    size: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    attention: int,
    text_dim: int,
    **options: Any,
) -> MemberConfig:
    """Return a member with self- and cross-attention in its `attention` lowest levels."""
    attends = tuple(level >= len(widths) - attention for level in range(len(widths)))
    keys: dict[str, Any] = {"self_attention": attends, "cross_attention": attends, **options}
    network = UNetConfig(
        kind=kind, widths=widths, blocks=blocks, text_dim=text_dim, cond_dim=4 * widths[0], **keys
    )
    return MemberConfig(size=size, network=network)


def _base(
    size: int, widths: tuple[int, ...], blocks: int, text_dim: int, **options: Any
) -> MemberConfig:
    """Return a base member with attention in all levels but the first."""
    levels = len(widths)
    return _member("base", size, widths, (blocks,) * levels, levels - 1, text_dim, **options)


def _sr(
    size: int, widths: tuple[int, ...], blocks: tuple[int, ...], text_dim: int, **options: Any
) -> MemberConfig:
    """Return a super-resolution member with attention in its lowest level."""
    return _member("efficient", size, widths, blocks, 1, text_dim, **options)


def _sr_of_crops(
    size: int, widths: tuple[int, ...], blocks: tuple[int, ...], text_dim: int, **options: Any
) -> MemberConfig:
    """Return a super-resolution member that trains on crops: without self-attention (Sec. 2.5)."""
    off = (False,) * len(widths)
    whole = _sr(size, widths, blocks, text_dim, self_attention=off, **options)
    return dataclasses.replace(whole, diffusion=DiffusionConfig(schedule="linear"))


def _preset(name: str, summary: str, encoder: str, parameters: int, member: MemberConfig) -> Preset:
    crops = member.network.kind == "efficient" and not any(member.network.self_attention)
    return Preset(
        name=name,
        summary=summary,
        member=member,
        parameters=parameters,
        encoder=encoder,
        crop_px=member.shape[0] // 4 if crops else 0,
    )


_XXL, _XL, _LARGE, _BASE = (f"google/t5-v1_1-{size}" for size in ("xxl", "xl", "large", "base"))

_ALL = (
    _preset(
        "base64", "the paper's 64 px base", _XXL, 2_028_632_579,
        _base(
            64, (512, 1024, 1536, 2048), 3, 4096, attention_depth=3, middle_attention=True
        ),
    ),
    _preset(
        "sr256", "the paper's 64 to 256 px", _XXL, 588_526_723,
        _sr(256, (128, 256, 512, 1024), (2, 4, 8, 8), 4096, head_dim=128),
    ),
    _preset(
        "sr1024", "the paper's 256 to 1024 px", _XXL, 423_825_539,
        _sr_of_crops(1024, (128, 256, 512, 1024), (2, 4, 8, 5), 4096, head_dim=128),
    ),
    _preset(
        "base64-l", "64 px base to train on 80 GB", _XL, 923_615_107,
        _base(64, (384, 768, 1152, 1536), 3, 2048, middle_attention=True),
    ),
    _preset(
        "sr256-l", "64 to 256 px to train on 80 GB", _XL, 587_474_051,
        _sr(256, (128, 256, 512, 1024), (2, 4, 8, 8), 2048, head_dim=128),
    ),
    _preset(
        "sr1024-l", "256 to 1024 px to train on 80 GB", _XL, 422_772_867,
        _sr_of_crops(1024, (128, 256, 512, 1024), (2, 4, 8, 5), 2048, head_dim=128),
    ),
    _preset(
        "base64-m", "64 px base to train on 24 GB", _LARGE, 410_254_595,
        _base(64, (256, 512, 768, 1024), 3, 1024, middle_attention=True),
    ),
    _preset(
        "sr256-m", "64 to 256 px to train on 24 GB", _LARGE, 330_328_931,
        _sr(256, (96, 192, 384, 768), (2, 4, 8, 8), 1024),
    ),
    _preset(
        "sr1024-m", "256 to 1024 px to train on 24 GB", _LARGE, 237_670_499,
        _sr_of_crops(1024, (96, 192, 384, 768), (2, 4, 8, 5), 1024),
    ),
    _preset(
        "base64-s", "64 px base to train on 12 GB", _BASE, 172_916_547,
        _base(64, (192, 384, 576, 768), 2, 768, middle_attention=True),
    ),
    _preset(
        "sr256-s", "64 to 256 px to train on 12 GB", _BASE, 146_899_011,
        _sr(256, (64, 128, 256, 512), (2, 4, 8, 8), 768),
    ),
    _preset(
        "sr1024-s", "256 to 1024 px to train on 12 GB", _BASE, 105_705_027,
        _sr_of_crops(1024, (64, 128, 256, 512), (2, 4, 8, 5), 768),
    ),
    _preset(
        "base8-tiny", "8 px grey digits, minutes on a CPU", TINY_T5, 699_393,
        _base(8, (32, 64), 1, TINY_T5_DIM, channels=1, head_dim=32),
    ),
    _preset(
        "sr32-tiny", "8 to 32 px grey digits, minutes on a CPU", TINY_T5, 772_177,
        _sr(32, (24, 48, 64), (1, 1, 1), TINY_T5_DIM, channels=1, head_dim=32),
    ),
    _preset(
        "base16-tiny", "16 px colour base, minutes on a CPU", TINY_T5, 1_997_827,
        _base(16, (64, 96), 1, TINY_T5_DIM, head_dim=32),
    ),
    _preset(
        "sr64-tiny", "16 to 64 px colour, minutes on a CPU", TINY_T5, 1_101_971,
        _sr(64, (16, 48, 96), (1, 1, 1), TINY_T5_DIM, head_dim=32),
    ),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
"""Presets by name, largest first."""

CASCADES: dict[str, CascadePreset] = {
    cascade.name: cascade
    for cascade in (
        CascadePreset(
            name="imagen",
            summary="the paper's, 1024 px, GPUs of 80 GB",
            presets=("base64", "sr256", "sr1024"),
        ),
        CascadePreset(
            name="imagen-l",
            summary="1024 px, a GPU of 80 GB",
            presets=("base64-l", "sr256-l", "sr1024-l"),
        ),
        CascadePreset(
            name="imagen-m",
            summary="1024 px, a GPU of 24 GB",
            presets=("base64-m", "sr256-m", "sr1024-m"),
        ),
        CascadePreset(
            name="imagen-s",
            summary="1024 px, a GPU of 12 GB",
            presets=("base64-s", "sr256-s", "sr1024-s"),
        ),
        CascadePreset(
            name="photos-tiny",
            summary="64 px, a folder of images, a CPU",
            presets=("base16-tiny", "sr64-tiny"),
        ),
        CascadePreset(
            name="digits-tiny",
            summary="32 px, grey digits, a CPU",
            presets=("base8-tiny", "sr32-tiny"),
        ),
    )
}
"""Cascades by name; each trains one member at a time."""
