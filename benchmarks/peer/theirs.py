"""imagen-pytorch's side of the comparison: runs inside its own environment.

Its import asks a model hub for the width of a default text encoder, and pulls in torchvision for
image files. Neither is measured here: embeddings are given, so the encoder's configuration is a
stub, and torchvision is one too where its build does not fit torch's.
"""

import functools
import importlib
import importlib.machinery
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from cases import Case


class _Anything(types.ModuleType):
    """A module whose every name is a callable that does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _stub_torchvision() -> None:
    """Replace torchvision by a stub where it does not import."""
    try:
        importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError, OSError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        top, transforms = _Anything("torchvision"), _Anything("torchvision.transforms")
        top.transforms, top.__path__ = transforms, []  # type: ignore[attr-defined]
        sys.modules.update({"torchvision": top, "torchvision.transforms": transforms})


@functools.cache
def load() -> Any:
    """Import imagen-pytorch without a network; return its module."""
    encoder = types.ModuleType("imagen_pytorch.t5")
    encoder.t5_encode_text = print  # type: ignore[attr-defined]
    encoder.get_encoded_dim = lambda _: 768  # type: ignore[attr-defined]
    encoder.DEFAULT_T5_NAME = "stub"  # type: ignore[attr-defined]
    sys.modules["imagen_pytorch.t5"] = encoder
    _stub_torchvision()
    return importlib.import_module("imagen_pytorch")


def network(peer: Any, case: Case) -> torch.nn.Module:
    """Return the peer's U-Net of a case."""
    fewer = {
        "use_global_context_attn": False,
        "init_cross_embed": False,
        "init_conv_kernel_size": 3,
        "attend_at_middle": False,
        "attn_pool_text": False,
    }
    return peer.Unet(
        dim=case.width,
        dim_mults=case.multiples,
        # its levels have one block more than this says
        num_resnet_blocks=tuple(n - 1 for n in case.blocks),
        layer_attns=case.self_attention,
        layer_cross_attns=case.cross_attention,
        attn_heads=case.heads,
        attn_dim_head=case.head_dim,
        cond_dim=case.cond_dim,
        text_embed_dim=case.text_dim,
        max_text_len=case.tokens,
        memory_efficient=case.lowres > 0,
        **(fewer if case.parts == "few" else {}),
    )


class Theirs:
    """A U-Net of imagen-pytorch with its data, ready for training or sampling steps."""

    def __init__(self, case: Case, device: str) -> None:
        peer = load()
        self.case, self.device = case, device
        before = [peer.NullUnet()] if case.lowres else []
        self.imagen = peer.Imagen(
            unets=(*before, network(peer, case)),
            image_sizes=(*((case.lowres,) if case.lowres else ()), case.size),
            text_embed_dim=case.text_dim,
            pred_objectives="v",
            timesteps=1000,
        ).to(device)
        self.number = len(before) + 1
        self.net = self.imagen.unets[-1]
        self.emb = torch.randn(case.batch, case.tokens, case.text_dim, device=device)
        self.mask = torch.ones(case.batch, case.tokens, dtype=torch.bool, device=device)
        self.images = torch.rand(case.batch, 3, case.size, case.size, device=device)

    def loss(self) -> torch.Tensor:
        """Return the mean loss of the batch, every random draw made anew."""
        given = {"text_embeds": self.emb, "text_masks": self.mask, "unet_number": self.number}
        return self.imagen(self.images, **given)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer as ImagenTrainer makes it."""
        return torch.optim.Adam(self.net.parameters(), lr=1e-4, eps=1e-8, betas=(0.9, 0.99))

    def compile(self) -> None:
        """Do nothing: it has no compilation of its own."""

    def sampler(self, steps: int, scale: float) -> Callable[[], torch.Tensor]:
        """Return a function that makes `steps` steps of its sampler from the middle on."""
        case, batch = self.case, self.case.batch
        self.net.eval()
        scheduler = self.imagen.noise_schedulers[-1]
        times = torch.linspace(0.6, 0.4, steps + 1, device=self.device)[:, None].expand(-1, batch)
        low = {}
        if case.lowres:
            level = self.imagen.lowres_noise_schedule.get_times(batch, 0.2, device=self.device)
            low = {"lowres_cond_img": self.images, "lowres_noise_times": level}

        def run() -> torch.Tensor:
            x = torch.randn_like(self.images)
            for now, after in itertools.pairwise(times):
                x, _ = self.imagen.p_sample(
                    self.net, x, now, t_next=after, noise_scheduler=scheduler, cond_scale=scale,
                    text_embeds=self.emb, text_mask=self.mask, pred_objective="v", **low,
                )  # fmt: skip
            return x

        return run
