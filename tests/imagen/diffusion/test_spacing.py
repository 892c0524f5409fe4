import math
from itertools import pairwise

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.errors import ConfigError

COSINE, EDM = schedule(DiffusionConfig()), schedule(DiffusionConfig(schedule="edm"))
ZERO = schedule(DiffusionConfig(zero_terminal_snr=True))


def test_spacing_in_time_is_the_schedule_at_even_times():
    expected = COSINE(torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)).tolist()
    assert path(COSINE, 4) == expected


def test_spacing_in_logsnr_is_even():
    levels = torch.tensor(path(COSINE, 10, "logsnr"))
    torch.testing.assert_close(levels, torch.linspace(-15, 15, 11))


def test_karras_spacing_is_equation_5():
    sigmas = [math.exp(-level / 2) for level in path(COSINE, 8, "karras")]
    most, least = math.exp(7.5), math.exp(-7.5)
    expected = [
        (most ** (1 / 7) + i / 8 * (least ** (1 / 7) - most ** (1 / 7))) ** 7 for i in range(9)
    ]
    assert sigmas == pytest.approx(expected)


def test_karras_spacing_of_edms_schedule_is_its_spacing_in_time():
    assert path(EDM, 12, "karras") == pytest.approx(path(EDM, 12))


@pytest.mark.parametrize("spacing", ["time", "logsnr", "karras"])
@pytest.mark.parametrize("curve", [COSINE, EDM, ZERO])
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_every_path_rises_from_its_start_to_the_clean_end(spacing, curve, start):
    levels = path(curve, 7, spacing, start)
    ends = curve(torch.tensor([start, 0.0], dtype=torch.float64)).tolist()
    assert len(levels) == 8
    assert all(a < b for a, b in pairwise(levels))
    assert [levels[0], levels[-1]] == pytest.approx(ends)
    assert all(math.isfinite(level) for level in levels[1:])


def test_zero_snr_comes_first_and_the_others_are_spread_as_without_it():
    for spacing in ("logsnr", "karras"):
        assert path(ZERO, 6, spacing)[0] == -math.inf
        expected = pytest.approx(path(COSINE, 6, spacing)[1:], abs=1e-8)
        assert path(ZERO, 6, spacing)[1:] == expected


def test_impossible_paths_are_refused():
    with pytest.raises(ConfigError, match="steps 0 is less than 1"):
        path(COSINE, 0)
    with pytest.raises(ConfigError, match=r"start 0.0 is not a time in \(0, 1\]"):
        path(COSINE, 4, start=0.0)
    with pytest.raises(ConfigError, match="spacing 'magic' is none of time, logsnr, karras"):
        path(COSINE, 4, "magic")
