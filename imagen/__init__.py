"""imagen: an Imagen-style text-to-image cascade. The library; stages are beside this folder.

    import imagen

    cascade = imagen.Cascade.load("runs/digits/cascade")
    cascade.draw("a handwritten seven", seed=3).save("seven.png")

A picture is drawn again, or a part of it, from a file:

    edit = imagen.Edit.open("seven.png", cascade, strength=0.4)
    cascade.draw("the digit 1", edit=edit).save("one.png")

These names are imported when they are asked for, so `import imagen` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.cascade import Cascade
    from imagen.diffusion.config import SamplingConfig
    from imagen.editing import Edit
    from imagen.member import MemberConfig
    from imagen.network.config import UNetConfig
    from imagen.sampling import SampleOptions

__version__ = "0.1.0"
__all__ = ["Cascade", "Edit", "MemberConfig", "SampleOptions", "SamplingConfig", "UNetConfig"]

_HOMES = {
    "Cascade": "imagen.cascade",
    "Edit": "imagen.editing",
    "MemberConfig": "imagen.member",
    "SampleOptions": "imagen.sampling",
    "SamplingConfig": "imagen.diffusion.config",
    "UNetConfig": "imagen.network.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
