"""The cases that both systems are measured on; plain data, read in both environments."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One U-Net and one batch, in the words of neither system."""

    name: str
    """Word of the table."""
    size: int
    """Height and width in pixels."""
    lowres: int
    """Height and width of the low-resolution input; 0 = a base member."""
    width: int
    """Channels of the first level."""
    multiples: tuple[int, ...]
    """Width of each level over `width`."""
    blocks: tuple[int, ...]
    """Residual blocks of each level, each way (the peer: its extra one is among them)."""
    self_attention: tuple[bool, ...]
    """Levels that end in self-attention."""
    cross_attention: tuple[bool, ...]
    """Levels with cross-attention to the text."""
    batch: int
    """Images of a step."""
    parts: str = "alike"
    """`alike`: each as it comes, but ours resamples as the peer does; `own`: each as it comes;
    `all`: ours with all the peer's extra parts; `few`: as `alike`, the peer without its extra
    parts, as far as its options allow."""
    text_dim: int = 768
    """Width of the text embeddings."""
    tokens: int = 32
    """Text tokens of an image, all of them real."""
    cond_dim: int = 256
    """Width of the projected text tokens."""
    head_dim: int = 64
    """Channels of an attention head."""

    @property
    def heads(self) -> int:
        """Return the heads of the widest level, which the peer uses at all levels."""
        return max(2, self.width * self.multiples[-1] // self.head_dim)

    def json(self) -> dict[str, Any]:
        """Return plain data that `read` takes."""
        return asdict(self)


def read(data: dict[str, Any]) -> Case:
    """Return the case of `Case.json`, which may have passed through JSON."""
    return Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


_BASE32 = Case(
    name="base 32x32, 128 channels throughout",
    size=32,
    lowres=0,
    width=128,
    multiples=(1, 1, 1),  # the one base in which both have the same width everywhere
    blocks=(2, 2, 2),
    self_attention=(False, True, True),
    cross_attention=(False, True, True),
    batch=8,
)
_BASE64 = Case(
    name="base 64x64, 64 to 256 channels",
    size=64,
    lowres=0,
    width=64,
    multiples=(1, 2, 3, 4),
    blocks=(2, 2, 2, 2),
    self_attention=(False, True, True, True),
    cross_attention=(False, True, True, True),
    batch=4,
)
_SR64 = Case(
    name="SR 32→64, 64 to 256 channels",
    size=64,
    lowres=32,
    width=64,
    multiples=(1, 2, 4),
    blocks=(2, 4, 4),
    self_attention=(False, False, True),
    cross_attention=(False, False, True),
    batch=8,
)


def _with(case: Case, parts: str, words: str) -> Case:
    return replace(case, parts=parts, name=f"{case.name}, {words}")


CASES = (_BASE32, _BASE64, _SR64)
"""The same widths, depths, attention levels and resampling."""
MATCHED = tuple(
    _with(case, parts, words)
    for case in (_BASE64, _SR64)
    for parts, words in (
        ("own", "ours resampling in its own way"),
        ("all", "ours with the peer's parts"),
        ("few", "the peer without its extra parts"),
    )
)
"""The same, with parts switched on or off."""
_README = Case(
    name="base 64x64 of its README",
    size=64,
    lowres=0,
    width=32,
    multiples=(1, 2, 4, 8),
    blocks=(4, 4, 4, 4),
    self_attention=(False, True, True, True),
    cross_attention=(False, True, True, True),
    batch=4,
    cond_dim=512,
    head_dim=32,
)
_README_SR = Case(
    name="SR 32→64 of its README",
    size=64,
    lowres=32,
    width=32,
    multiples=(1, 2, 4, 8),
    blocks=(3, 5, 9, 9),
    self_attention=(False, False, False, True),
    cross_attention=(False, False, False, True),
    batch=4,
    cond_dim=512,
    head_dim=32,
)
README = (_README, _README_SR)
"""The cascade of the peer's README; only the resolution of its SR member is brought down."""
_PAPER64 = Case(
    name="base64 of the paper",
    size=64,
    lowres=0,
    width=512,
    multiples=(1, 2, 3, 4),
    blocks=(4, 4, 4, 4),
    self_attention=(False, True, True, True),
    cross_attention=(False, True, True, True),
    batch=16,
    text_dim=4096,
    tokens=128,
    cond_dim=512,
)
_PAPER256 = Case(
    name="SR 64→256 of the paper",
    size=256,
    lowres=64,
    width=128,
    multiples=(1, 2, 4, 8),
    blocks=(3, 5, 9, 9),
    self_attention=(False, False, False, True),
    cross_attention=(False, False, False, True),
    batch=16,
    text_dim=4096,
    tokens=128,
    cond_dim=512,
)
GPU_CASES = (_PAPER64, _PAPER256)
"""For a GPU of 80 GB or more: BaseUnet64 and SRUnet256 as the peer presets them."""
