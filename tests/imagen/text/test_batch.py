import numpy as np
import torch

from imagen.text.batch import batch


def test_rows_are_padded_with_zeros_and_masked():
    rows = [np.full((n, 3), n, dtype=np.float16) for n in (2, 1, 4)]
    emb, mask = batch(rows)
    assert emb.shape == (3, 4, 3)
    assert emb.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [2, 1, 4]
    assert torch.equal(emb[~mask], torch.zeros(5, 3))
    assert torch.equal(emb[0, :2], torch.full((2, 3), 2.0))
