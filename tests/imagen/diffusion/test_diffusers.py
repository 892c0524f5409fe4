"""Agreement with the schedulers of `diffusers`, on the same denoiser and the same noise levels."""

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.discrete import alphas_cumprod, betas, schedule_of
from imagen.diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler
from imagen.diffusion.schedule import schedule

pytestmark = [
    pytest.mark.slow,  # the import of diffusers takes seconds
    # diffusers 0.42 makes arrays of tensors in a way that numpy 2 complains of
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning"),
]

STEPS, NUM = 20, 1000
CONFIGS = [
    DiffusionConfig(schedule="linear"),
    DiffusionConfig(schedule="rectified", logsnr_shift=2.0),
    DiffusionConfig(schedule="edm"),
]


@pytest.fixture(scope="module")
def theirs():
    import diffusers

    return diffusers


@pytest.fixture(params=CONFIGS, ids=lambda config: config.schedule)
def alphas(request):
    return alphas_cumprod(schedule(request.param), NUM)


def options(alphas):
    return {"trained_betas": betas(alphas).tolist(), "prediction_type": "sample"}


def walk(scheduler, x, denoise, alphas, noise=None, **kwargs):
    """Run their loop with our denoiser; return their last x0 and the log-SNRs that they visit."""
    curve = schedule_of(alphas)
    levels = curve(scheduler.timesteps.double() / (NUM - 1)).tolist()
    x0 = x
    for i, t in enumerate(scheduler.timesteps):
        draw = {} if noise is None else {"variance_noise": noise(i)}
        x0 = denoise(x, levels[i])
        x = scheduler.step(x0, t, x, return_dict=False, **draw, **kwargs)[0]
    return x0, [*levels, 99.0]


@pytest.fixture
def x(normals):
    return normals(1, (64, 1, 1, 2))(0)


def close(ours, other):
    torch.testing.assert_close(ours, other.double(), atol=1e-4, rtol=0)


def test_their_alphas_are_ours(theirs, alphas):
    scheduler = theirs.DDIMScheduler(**options(alphas))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alphas, atol=1e-6, rtol=1e-4)


def test_ddim_agrees(theirs, alphas, gaussian, x):
    scheduler = theirs.DDIMScheduler(
        **options(alphas), clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    other, levels = walk(scheduler, x, gaussian.denoise, alphas)
    close(ddim(gaussian.denoise, x, levels), other)


def test_dpm_solver_2m_agrees(theirs, alphas, gaussian, x):
    scheduler = theirs.DPMSolverMultistepScheduler(**options(alphas))
    scheduler.set_timesteps(timesteps=[999, 950, 900, 800, 700, 500, 400, 300, 150, 80, 20, 5])
    other, levels = walk(scheduler, x, gaussian.denoise, alphas)
    close(dpmpp_2m(gaussian.denoise, x, levels), other)


def test_dpm_solver_2m_sde_agrees_given_the_same_noise(theirs, alphas, gaussian, x, normals):
    noise = normals(2, x.shape)
    scheduler = theirs.DPMSolverMultistepScheduler(
        **options(alphas), algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(STEPS)
    other, levels = walk(scheduler, x, gaussian.denoise, alphas, noise)
    close(dpmpp_2m_sde(gaussian.denoise, x, levels, noise=noise), other)


def test_ancestral_sampling_agrees_with_ddim_of_eta_1(theirs, alphas, gaussian, x, normals):
    noise = normals(3, x.shape)
    scheduler = theirs.DDIMScheduler(
        **options(alphas), clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    other, levels = walk(scheduler, x, gaussian.denoise, alphas, noise, eta=1.0)
    close(ddpm(gaussian.denoise, x, levels, noise=noise), other)


def test_euler_agrees(theirs, alphas, gaussian, x):
    scheduler = theirs.EulerDiscreteScheduler(**options(alphas))
    scheduler.set_timesteps(STEPS)
    levels = [(-2 * sigma.double().log()).item() for sigma in scheduler.sigmas[:-1]]
    scaled = x * (scheduler.sigmas[0].double() ** 2 + 1).sqrt()  # theirs is x0 + sigma eps
    for i, t in enumerate(scheduler.timesteps):
        xt = scheduler.scale_model_input(scaled, t)
        scaled = scheduler.step(gaussian.denoise(xt, levels[i]), t, scaled, return_dict=False)[0]
    close(euler(gaussian.denoise, x, [*levels, 99.0]), scaled)  # their last step is to sigma 0
