"""Data whose optimal denoiser is known, so that samplers have exact answers to meet."""

import math

import pytest
import torch


class Gaussian:
    """Images of two pixels, (b, 1, 1, 2), from a correlated Gaussian."""

    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    cov = torch.tensor([[0.25, 0.15], [0.15, 0.16]], dtype=torch.float64)

    def denoise(self, xt, logsnr):
        """E[x0 | xt]."""
        square = 1 / (1 + math.exp(-logsnr)) if logsnr > -100 else 0.0
        alpha, eye = math.sqrt(square), torch.eye(2, dtype=torch.float64)
        gain = alpha * self.cov @ torch.linalg.inv(square * self.cov + (1 - square) * eye)
        x = xt.flatten(1)
        return (self.mean + (x - alpha * self.mean.to(x)) @ gain.T.to(x)).view_as(xt)

    def flow(self, x, logsnr):
        """Where the probability flow carries x from a noise level to the clean image."""
        square = 1 / (1 + math.exp(-logsnr)) if logsnr > -100 else 0.0
        values, axes = torch.linalg.eigh(self.cov)
        stretch = axes @ torch.diag((values / (square * values + 1 - square)).sqrt()) @ axes.T
        x0 = self.mean + (x.flatten(1) - math.sqrt(square) * self.mean) @ stretch.T
        return x0.view_as(x)


@pytest.fixture
def gaussian():
    return Gaussian()


@pytest.fixture
def normals():
    """draws(seed, shape) -> a function from the number of a draw to that draw."""

    def draws(seed, shape):
        def noise(i):
            generator = torch.Generator().manual_seed(1000 * seed + i)
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return noise

    return draws
