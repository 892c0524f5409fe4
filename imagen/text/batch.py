"""Ragged text embeddings as the padded batch that networks take."""

from collections.abc import Sequence

import numpy as np
import torch


def batch(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad (l_i, d) rows to `text_emb` (b, l, d) float32 and `text_mask` (b, l), True = token."""
    lengths = [len(row) for row in rows]
    emb = np.zeros((len(rows), max(lengths), rows[0].shape[1]), dtype=np.float32)
    for i, row in enumerate(rows):
        emb[i, : lengths[i]] = row
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.from_numpy(emb), mask
