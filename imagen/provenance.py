"""What a snapshot's provenance says about sampling from it."""

from collections.abc import Mapping
from typing import Any

import torch

from imagen.errors import CheckpointError

OUTPUT = "out.weight"
"""Weights of the last convolution, which is all zero in a new network."""


def check_images_seen(name: str, where: str, provenance: Mapping[str, Any]) -> None:
    """Raise CheckpointError when member `name`, stored at `where`, has seen no image."""
    if provenance.get("images_seen") == 0:
        raise _untrained(name, where, "it has seen 0 images")


def check_output(name: str, where: str, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError when the output convolution of `name` is as it was initialised."""
    if OUTPUT in state_dict and not state_dict[OUTPUT].any():
        raise _untrained(name, where, f"its `{OUTPUT}` is all zero, as in a new network")


def _untrained(name: str, where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"member {name} in `{where}` is not trained: {reason}",
        f"train it: `python -m train CONFIG member={name}`",
    )


def check_previous(
    name: str, provenance: Mapping[str, Any], previous: tuple[int, int] | None
) -> None:
    """Raise CheckpointError when `name` was trained on other low-resolution images.

    `previous`: (h, w) of the member before it in the cascade; None for the first.
    """
    trained = provenance.get("previous_size")
    if trained is None or previous is None:
        return
    shape = (trained, trained) if isinstance(trained, int) else tuple(trained)
    if shape != previous:
        raise CheckpointError(
            f"member {name} was trained on low-resolution images of {shape[0]} x {shape[1]}, the "
            f"member before it draws {previous[0]} x {previous[1]}",
            "assemble members of one config",
        )


def without_null_text(provenance: Mapping[str, Any]) -> bool:
    """Tell whether a member was never trained without its text, as far as its recipes say."""
    recipes = [entry["recipe"] for entry in provenance.get("earlier_recipes", ())]
    recipes += [provenance["train"]] if "train" in provenance else []
    return bool(recipes) and all(recipe.get("caption_drop") == 0 for recipe in recipes)
