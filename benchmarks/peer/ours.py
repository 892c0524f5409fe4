"""Our side of the comparison."""

from collections.abc import Callable
from dataclasses import replace

import torch
from cases import Case

from imagen.diffusion.samplers import SAMPLERS
from imagen.diffusion.schedule import cosine_logsnr
from imagen.member import (
    Given,
    MemberConfig,
    SamplingConfig,
    Text,
    TrainBatch,
    condition_lowres,
    denoiser,
    loss,
)
from imagen.network.config import UNetConfig
from imagen.network.unet import build

RESAMPLING = {"upsample": "pixel_shuffle", "downsample_kernels": (2,)}
"""As the peer by default; its pixel unshuffle and 1x1 convolution are a 2x2 one of stride 2."""
MORE = {
    "feed_forward": 2,
    "global_context": True,
    "middle_attention": True,
    "stem_kernels": (3, 7, 15),
    "text_latents": 32,
}
"""What else the peer has by default and we do not."""


def config_of(case: Case) -> UNetConfig:
    """Return our U-Net of a case."""
    return UNetConfig(
        kind="efficient" if case.lowres else "base",
        widths=tuple(case.width * m for m in case.multiples),
        blocks=case.blocks,
        self_attention=case.self_attention,
        cross_attention=case.cross_attention,
        text_dim=case.text_dim,
        cond_dim=case.cond_dim,
        head_dim=case.head_dim,
        **({} if case.parts == "own" else RESAMPLING),
        **(MORE if case.parts == "all" else {}),
    )


class Ours:
    """One of our U-Nets with its data, ready for training or sampling steps."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.config = MemberConfig(size=case.size, network=config_of(case))
        self.net = build(self.config.network).to(device)
        emb = torch.randn(case.batch, case.tokens, case.text_dim, device=device)
        self.text = Text(emb, torch.ones(emb.shape[:2], dtype=torch.bool, device=device))
        self.images = torch.rand(case.batch, 3, case.size, case.size, device=device) * 2 - 1
        shape = (case.batch, 3, case.lowres, case.lowres)
        self.lowres = torch.rand(shape, device=device) * 2 - 1 if case.lowres else None

    def loss(self) -> torch.Tensor:
        """Return the mean loss of the batch, every random draw made anew."""
        batch = self.case.batch
        given = TrainBatch(
            x0=self.images,
            eps=torch.randn_like(self.images),
            t=torch.rand(batch, dtype=torch.float64, device=self.device),
            text=self.text,
            keep=(torch.rand(batch, device=self.device) > 0.1).float(),
        )
        if self.lowres is not None:
            level = torch.rand(batch, dtype=torch.float64, device=self.device)
            given = replace(
                given,
                lowres=self.lowres,
                aug_level=level,
                aug_eps=torch.randn_like(self.lowres),
            )
        return loss(self.net, self.config, given).mean()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer as `train.optim` makes it."""
        return torch.optim.AdamW(self.net.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def compile(self) -> None:
        """Compile the residual blocks and attentions."""
        self.net.compile_blocks()

    def sampler(self, steps: int, scale: float) -> Callable[[], torch.Tensor]:
        """Return a function that makes `steps` steps of ancestral sampling from the middle on."""
        self.net.eval()
        low = aug = None
        if self.lowres is not None:
            level = torch.full((self.case.batch,), 0.2, dtype=torch.float64, device=self.device)
            eps = torch.randn_like(self.lowres)
            low, aug = condition_lowres(self.lowres, level, eps, self.config.shape)
        sampling = SamplingConfig(sampler="ddpm", guidance_scale=scale)
        config, given = (
            replace(self.config, sampling=sampling),
            Given(self.text, lowres=low, aug=aug),
        )
        times = torch.linspace(0.6, 0.4, steps + 1, dtype=torch.float64)
        logsnrs = cosine_logsnr(times).tolist()

        @torch.inference_mode()
        def run() -> torch.Tensor:
            denoise = denoiser(self.net, config, given)
            x = torch.randn_like(self.images)
            noise = lambda _: torch.randn_like(x)  # noqa: E731
            return SAMPLERS["ddpm"].function(denoise, x, logsnrs, noise=noise)

        return run
