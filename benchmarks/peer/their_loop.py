"""imagen-pytorch's training loop, as its README writes it: ImagenTrainer with a dataset."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from PIL import Image
from theirs import load, network


class Files(torch.utils.data.Dataset):
    """Pictures and text embeddings from a folder: what its own `Dataset` does with pictures.

    Resized, mirrored with probability 0.5, cut from the middle, to a tensor in [0, 1]; that one is
    made of torchvision, whose build for CPUs may be missing, and has no text.
    """

    def __init__(self, folder: str, size: int) -> None:
        self.size = size
        self.paths = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.paths[i]).convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        emb = np.load(self.paths[i].with_suffix(".npy"))
        return pixels.contiguous().float() / 255, torch.from_numpy(emb)


def collate(rows: list[Any], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (b, 3, h, w) and embeddings (b, tokens, d), filled up with zeros.

    The peer makes its mask of what is not 0.
    """
    emb = torch.zeros(len(rows), tokens, rows[0][1].shape[1])
    for i, (_, row) in enumerate(rows):
        emb[i, : len(row)] = row
    return torch.stack([image for image, _ in rows]), emb


class Loop:
    """Its `train_step`, one at a time: next batch, forward, backward, update, EMA."""

    def __init__(self, case: Case, folder: str, save_at: int) -> None:
        del save_at
        peer = load()
        before = [peer.NullUnet()] if case.lowres else []
        imagen = peer.Imagen(
            unets=(*before, network(peer, case)),
            image_sizes=(*((case.lowres,) if case.lowres else ()), case.size),
            text_embed_dim=case.text_dim,
            pred_objectives="v",
            timesteps=1000,
        )
        self.number = len(before) + 1
        self.params = sum(p.numel() for p in imagen.unets[-1].parameters())
        self.trainer = peer.ImagenTrainer(
            imagen, lr=1e-4, max_grad_norm=1.0, split_valid_from_train=False, verbose=False
        )
        loader = torch.utils.data.DataLoader(
            Files(f"{folder}/files", case.size),
            batch_size=case.batch,
            shuffle=True,
            collate_fn=lambda rows: collate(rows, case.tokens),
        )
        self.trainer.add_train_dataloader(loader)
        self.batch = case.batch

    def step(self) -> None:
        """Take one turn of the loop."""
        self.trainer.train_step(unet_number=self.number, max_batch_size=self.batch)

    def save(self) -> float:
        """Take a step and save; return the seconds that training stood still for it."""
        self.step()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.save(f"{folder}/checkpoint.pt")
        return time.perf_counter() - began
