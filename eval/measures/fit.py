"""How well images fit their prompts by CLIP, and what is left of that with others' prompts.

100 max(cos, 0) of the embeddings, as torchmetrics has it, and above 30 for good images by ViT-B/32.
Hessel et al. (arXiv:2104.08718, section 3) have w = 2.5 in place of the 100, and put "A photo
depicts" before each text, which we leave as it is: our scores are not 40 times theirs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.measures import intervals
from eval.measures.shuffle import partners


def scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the score of each pair of unit vectors (n, d)."""
    return 100 * np.clip((images.astype(np.float64) * texts).sum(axis=1), 0, None)


def figures(
    model: str, images: np.ndarray, texts: np.ndarray, prompts: Sequence[str]
) -> dict[str, Any]:
    """Return mean scores with right and shuffled prompts, and the mean of their differences."""
    right = scores(images, texts)
    body = {"model": model, "score": intervals.mean(right)}
    others = partners(prompts)
    if others is not None:
        wrong = scores(images, texts[others])
        body |= {"shuffled": intervals.mean(wrong), "gap": intervals.mean(right - wrong)}
    return body
