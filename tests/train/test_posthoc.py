"""EMA of any width after training, against the same EMA kept in training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imagen import checkpoint, manifest, snapshot, storage
from imagen import config as configs
from imagen.errors import CheckpointError, ConfigError
from train import ema, posthoc, rundir
from train.commands import ema as command
from train.config import TrainConfig, TrainStageConfig

STEPS, BATCH = 480, 8
WIDTHS = (0.05, 0.1)
OTHERS = (0.03, 0.07, 0.15)


def wander(rng: np.random.Generator, at: torch.Tensor) -> torch.Tensor:
    """Return a random walk from `at`, as training makes: it drifts, and each step shakes it."""
    drift = 0.02 * rng.normal(size=(STEPS, *at.shape)).cumsum(axis=0)
    shakes = 0.05 * rng.normal(size=(STEPS, *at.shape))
    return at + torch.from_numpy(drift + shakes).float()


class Run:
    """A run of random walks with snapshots; its averages of other widths are known, too."""

    def __init__(self, config: TrainStageConfig, every: int) -> None:
        self.dir, self.member = config.run_dir("base"), config.members["base"]
        rng = np.random.default_rng(0)
        shapes = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "head.weight": (5, 4)}
        weights = {n: torch.from_numpy(rng.normal(size=s)).float() for n, s in shapes.items()}
        walks = {name: wander(rng, tensor) for name, tensor in weights.items()}
        train = TrainConfig(
            images=STEPS * BATCH, global_batch=BATCH, microbatch=BATCH, ema_sigma_rel=0.2,
            ema_profiles=WIDTHS, checkpoint_every=100, snapshot_every=100, log_every=100,
        )  # fmt: skip
        averages = ema.Averages(list(weights.items()), train)
        others = {width: {n: t.double() for n, t in weights.items()} for width in OTHERS}
        self.true: dict[tuple[float, int], dict[str, torch.Tensor]] = {}
        for step in range(STEPS):
            seen = (step + 1) * BATCH
            for name, weight in weights.items():
                weight.copy_(walks[name][step])
            averages.update(seen)
            for width, kept in others.items():
                exact = [weight.double() for weight in weights.values()]
                ema.update(kept.values(), exact, ema.beta(ema.gamma(width), seen, BATCH))
            if seen % every == 0:
                self._save(averages, seen)
                for width, kept in others.items():
                    self.true[width, seen] = {n: t.clone() for n, t in kept.items()}

    def _save(self, averages: ema.Averages, seen: int) -> None:
        folder = storage.join(self.dir, "snapshots", checkpoint.folder_name(seen))
        facts, extras = {"images_seen": seen, "seed": 3}, averages.profiles()
        snapshot.save(folder, "base", self.member, averages.main(), facts, extras)

    def made(self, width: float, at: int | None = None) -> dict[str, torch.Tensor]:
        """Return the reconstructed average."""
        steps = posthoc.plan(self.dir, width, at)
        folder = posthoc.default_folder(self.dir, steps.images_seen, width)
        posthoc.make(steps, folder)
        return snapshot.load(folder).state_dict

    def error(self, width: float, at: int) -> float:
        """Return how far it is off, over the distance of the true average from the 0.1 one."""
        made, true = self.made(width, at), self.true[width, at]
        folder = storage.join(self.dir, "snapshots", checkpoint.folder_name(at))
        near = snapshot.load_extra(folder, "ema@0.1")
        return distance(made, true) / distance(near, true)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[n].double() - other[n].double()).square().sum()) for n in one) ** 0.5


@pytest.fixture(scope="module")
def runs(helpers, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Runs with a snapshot every so many images."""
    made = {}
    for every in (480, 160):
        folder = tmp_path_factory.mktemp(f"every{every}")
        made[every] = Run(helpers.make_config(str(folder)), every)
    return made


@pytest.mark.parametrize(("width", "most"), [(0.07, 0.02), (0.15, 0.02), (0.03, 0.08)])
def test_a_width_nobody_kept_is_made_and_more_exactly_from_more_snapshots(
    runs: dict[int, Run], width: float, most: float
):
    few, many = (runs[every].error(width, STEPS * BATCH) for every in (480, 160))
    assert few < most
    assert many < few / 5


def test_an_earlier_moment_is_made_from_snapshots_around_it(runs: dict[int, Run]):
    assert runs[160].error(0.07, 1920) < 0.01


def test_a_width_that_was_kept_comes_out_as_it_was(runs: dict[int, Run]):
    run = runs[480]
    made = run.made(0.1)
    folder = storage.join(run.dir, "snapshots", checkpoint.folder_name(STEPS * BATCH))
    kept = snapshot.load_extra(folder, "ema@0.1")
    assert made.keys() == kept.keys()
    for name, tensor in made.items():
        assert torch.allclose(tensor, kept[name], rtol=1e-5, atol=1e-6)
    steps = posthoc.plan(run.dir, 0.1)
    assert steps.error < 1e-6
    assert len(steps.profiles) == 1  # nothing else is read


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_a_weight_that_never_moved_comes_out_as_it_was(runs: dict[int, Run], width: float):
    assert sum(posthoc.plan(runs[480].dir, width).coefficients) == pytest.approx(1, abs=1e-9)


def test_the_error_that_is_told_is_that_of_the_profile(runs: dict[int, Run]):
    """By adding up the profiles themselves, finely."""
    steps = posthoc.plan(runs[480].dir, 0.07)
    times = (np.arange(200_000) + 0.5) / 200_000
    total = np.zeros_like(times)
    for profile, factor in zip(steps.profiles, steps.coefficients, strict=True):
        end, gamma = profile.images_seen / steps.images_seen, ema.gamma(profile.sigma_rel)
        inside = np.where(times < end, times / end, 0.0)
        total += factor * (gamma + 1) / end * inside**gamma
    wanted = (ema.gamma(0.07) + 1) * times ** ema.gamma(0.07)
    error = np.sqrt(np.square(total - wanted).mean() / np.square(wanted).mean())
    assert steps.error == pytest.approx(error, rel=1e-2)


def test_inner_products_are_the_integrals_and_do_not_overflow():
    times = (np.arange(100_000) + 0.5) / 100_000
    for (ga, a), (gb, b) in [((3.0, 0.4), (7.0, 1.0)), ((7.0, 1.0), (3.0, 0.4))]:
        one, other = (
            np.where(times < end, (g + 1) / end * (times / end) ** g, 0)
            for g, end in ((ga, a), (gb, b))
        )
        found = posthoc.inner(*(np.asarray(x) for x in (ga, a, gb, b)))
        assert found == pytest.approx((one * other).mean(), rel=1e-3)
    far = posthoc.inner(*(np.asarray(x) for x in (2000.0, 1e9, 2000.0, 1e3)))
    assert 0 <= far < 1e-300


def test_the_snapshot_says_what_it_is(runs: dict[int, Run]):
    run = runs[480]
    run.made(0.07, 1920)
    folder = f"{run.dir}/ema/000000001920-0.07"
    provenance = snapshot.load(folder).provenance
    assert (provenance["images_seen"], provenance["seed"]) == (1920, 3)
    assert provenance["posthoc_ema"]["sigma_rel"] == 0.07
    assert 0 < provenance["posthoc_ema"]["error"] < 0.1
    assert rundir.snapshot_in(folder, "base") == folder


def copied(run: Run, folder: Path | str, change=lambda body: body) -> str:
    """Copy a run's snapshots with other manifests; return its folder."""
    for name in storage.listdir(f"{run.dir}/snapshots"):
        own = f"{run.dir}/snapshots/{name}"
        for file in storage.listdir(own):
            storage.put(f"{folder}/snapshots/{name}/{file}", storage.get(f"{own}/{file}"))
        path = f"{folder}/snapshots/{name}/{snapshot.MANIFEST}"
        manifest.write(path, snapshot.KIND, change(manifest.read(path, snapshot.KIND)))
    return str(folder)


def test_a_remote_run_is_read_and_written_at_its_url(runs: dict[int, Run], tmp_path: Path):
    there = copied(runs[480], f"memory://posthoc{tmp_path}/base")
    steps = posthoc.plan(there, 0.07)
    folder = posthoc.default_folder(there, steps.images_seen, 0.07)
    posthoc.make(steps, folder)
    here = runs[480].made(0.07)
    found = snapshot.load(folder).state_dict
    assert all(torch.equal(found[name], here[name]) for name in here)


def test_a_run_without_profiles_says_which_key_keeps_them(runs: dict[int, Run], tmp_path: Path):
    def without(body: dict) -> dict:
        return {key: value for key, value in body.items() if key != "extras"}

    run_dir = copied(runs[480], tmp_path / "base", without)
    with pytest.raises(CheckpointError, match="has the profiles that an EMA is made from") as err:
        posthoc.plan(run_dir, 0.07)
    assert "set ema_profiles=[0.05,0.1]" in str(err.value)


def test_a_moment_without_a_snapshot_is_refused_with_the_nearest(runs: dict[int, Run]):
    with pytest.raises(ConfigError, match="--at 1900: no snapshot") as err:
        posthoc.plan(runs[480].dir, 0.07, 1900)
    assert "the nearest are 960, 1440, 1920, 2400" in str(err.value)


@pytest.mark.parametrize("width", [0.0, 0.28, -0.1])
def test_a_width_that_no_power_function_has_is_refused(runs: dict[int, Run], width: float):
    with pytest.raises(ConfigError, match=rf"--sigma-rel {width} is not in \(0, 0.28\)"):
        posthoc.plan(runs[480].dir, width)


def test_a_width_that_the_snapshots_are_too_sparse_for_is_refused(runs: dict[int, Run]):
    with pytest.raises(CheckpointError, match=r"sigma_rel 0.005 at 3,840 .*: it would be \d+% off"):
        posthoc.plan(runs[480].dir, 0.005)


def test_a_damaged_profile_is_refused_by_name(runs: dict[int, Run], tmp_path: Path):
    run_dir = copied(runs[480], tmp_path / "base")
    path = next(Path(run_dir).glob("snapshots/000000003840/ema@0.1-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    steps = posthoc.plan(run_dir, 0.07)
    with pytest.raises(CheckpointError, match=r"ema@0.1-\w+.safetensors` is missing, damaged"):
        posthoc.make(steps, f"{tmp_path}/out")
    assert not storage.exists(f"{tmp_path}/out/{snapshot.MANIFEST}")


def test_the_command_says_how_exact_it_is_and_a_dry_run_writes_nothing(
    helpers, runs: dict[int, Run], tmp_path: Path, capsys: pytest.CaptureFixture
):
    copied(runs[480], tmp_path / "base")
    config = configs.dump_yaml(helpers.make_config(str(tmp_path)))
    (tmp_path / "c.yaml").write_text(config)
    words = [f"{tmp_path}/c.yaml", "member=base", "--sigma-rel", "0.07"]
    command.run(command.parser().parse_args([*words, "--dry-run"]))
    assert not (tmp_path / "base" / "ema").exists()
    assert "sigma_rel 0.07 at 3,840 images, from 1" in capsys.readouterr().out
    command.run(command.parser().parse_args([*words, "--at", "1920"]))
    assert capsys.readouterr().out.endswith(f"off: {tmp_path}/base/ema/000000001920-0.07\n")
    assert snapshot.load(f"{tmp_path}/base/ema/000000001920-0.07").name == "base"


@pytest.mark.slow
def test_the_command_is_found_and_a_mistake_is_told_without_a_traceback(helpers, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(configs.dump_yaml(helpers.make_config(str(tmp_path))))
    words = [sys.executable, "-m", "train", "ema", f"{tmp_path}/c.yaml", "member=base"]
    done = subprocess.run(
        [*words, "--sigma-rel", "0.07"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no snapshot in")
