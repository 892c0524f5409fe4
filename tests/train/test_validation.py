import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagen import snapshot
from imagen.data.randomness import Purpose
from imagen.network.unet import UNet, build
from train import validation
from train.config import TrainStageConfig
from train.heldout import SPREAD, HeldOut, choose
from train.job import Inputs
from train.results import Results, loss_of, scalars
from train.validating import Task

CPU = torch.device("cpu")


def small(helpers, folder: str, **train: object) -> TrainStageConfig:
    config = helpers.make_config(folder, **{"validate": 64, "grid": 1, **train})
    return helpers.changed(config, "base", sampling={"steps": 1})


def network(config: TrainStageConfig, member: str = "base", seed: int = 0) -> UNet:
    """A network whose output is not zero, as a new one's is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(config.members[member].network).eval()
        for weight in net.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return net


def course(config: TrainStageConfig, member: str = "base", batch: int = 4) -> validation.Course:
    train = config.of(member)
    heldout = HeldOut.open(config, member, train.validate)
    return validation.Course(
        heldout,
        config.members[member],
        seed=config.seed,
        count=len(heldout.places),
        crop_px=train.crop_px,
        batch=batch,
    )


def write_snapshot(config: TrainStageConfig, images: int, member: str = "base", seed: int = 0):
    provenance = {"images_seen": images}
    snapshot.save(
        f"{config.run_dir(member)}/snapshots/{images:012d}",
        member,
        config.members[member],
        network(config, member, seed).state_dict(),
        provenance,
        {"raw": network(config, member, seed + 1).state_dict()},
    )


def task(config: TrainStageConfig, images: int, member: str = "base") -> Task:
    identity = Inputs.open(config, member).identity
    return Task(config, member, Results.of(config, member, identity), f"{images:012d}")


@pytest.mark.parametrize("member", ["base", "sr1"])
def test_the_losses_do_not_depend_on_the_batch(helpers, project: str, member: str):
    config = small(helpers, project)
    net = network(config, member)
    one, many = (validation.losses(net, course(config, member, batch)) for batch in (1, 5))
    np.testing.assert_allclose(one.captioned, many.captioned, rtol=1e-4)
    np.testing.assert_allclose(one.without, many.without, rtol=1e-4)
    np.testing.assert_allclose(one.shuffled, many.shuffled, rtol=1e-4)
    assert (one.logsnr == many.logsnr).all()
    assert np.abs(one.captioned - one.without).max() > 1e-4  # the text is seen, and left out


def test_times_lie_one_in_each_stratum_and_draws_are_not_those_of_training(helpers, project):
    config = small(helpers, project)
    all_of_it = course(config)
    found = validation.losses(network(config), all_of_it)
    assert len(found.logsnr) == all_of_it.count == 11
    times = all_of_it._times()
    assert sorted((times * 11).astype(int)) == list(range(11))
    assert not set(validation.Draw) & {p + i for p in Purpose for i in range(16)}


def test_shuffled_captions_are_those_of_other_samples_each_once(helpers, project: str):
    all_of_it = course(small(helpers, project), batch=100)
    ((batch, shuffled),) = all_of_it.batches(Counter())
    rows = [batch.text.emb[i][batch.text.mask[i]] for i in range(11)]
    others = [shuffled.text.emb[i][shuffled.text.mask[i]] for i in range(11)]
    same = [[torch.equal(a, b) for b in others] for a in rows]
    assert sorted(str(row.tolist()) for row in rows) == sorted(str(o.tolist()) for o in others)
    assert sum(same[i][i] for i in range(11)) <= 2  # by chance: few captions are in use
    assert (shuffled.x0 == batch.x0).all()
    assert (shuffled.eps == batch.eps).all()
    found = validation.losses(network(small(helpers, project)), all_of_it)
    changed = np.array([not same[i][i] for i in range(11)])
    assert (np.abs(found.shuffled - found.captioned)[changed] > 0).all()
    assert (found.shuffled == found.captioned)[~changed].all()


def test_held_out_samples_are_chosen_by_data_set_and_seed_alone(helpers, tmp_path: Path):
    helpers.write_data(str(tmp_path), (40,) * 12)
    prepared = Inputs.open(small(helpers, str(tmp_path)), "base").prepared
    held = sum(shard.heldout for shard in prepared.shards)
    few = choose(prepared, 5, 0)
    assert choose(prepared, 5, 0) == few
    assert choose(prepared, 6, 0)[:5] == few
    assert choose(prepared, 5, 1) != few
    everything = choose(prepared, 10**6, 0)
    assert len(set(everything)) == len(everything) == held
    assert all(row in prepared.rows(shard, "heldout") for shard, row in everything)
    near = {shard for shard, _ in choose(prepared, 10, 0)}
    assert len(near) <= SPREAD < len({shard for shard, _ in everything})


def test_pictures_on_a_store_are_read_as_from_a_disk(helpers, project: str, tmp_path: Path):
    from imagen import storage

    remote = f"memory://validation{tmp_path}"
    for path in Path(project).rglob("*"):
        if path.is_file():
            storage.put(f"{remote}/{path.relative_to(project)}", path.read_bytes())
    here, there = (HeldOut.open(small(helpers, where), "base", 4) for where in (project, remote))
    for number in range(4):
        ours, theirs = here.read(number), there.read(number)
        assert (ours.planes[0] == theirs.planes[0]).all()
        assert (ours.tokens == theirs.tokens).all()
        assert here.caption(number) == there.caption(number)


def test_a_result_says_what_was_measured_and_comes_out_the_same_again(helpers, project: str):
    config = small(helpers, project)
    write_snapshot(config, 80)
    result = task(config, 80)(CPU)
    assert result is not None
    files = sorted(Path(project, "base", "validation").iterdir())
    assert [file.name for file in files] == ["000000000080.json", "000000000080.png"]
    before = [file.read_bytes() for file in files]
    shutil.rmtree(files[0].parent)
    assert task(config, 80)(CPU) == result
    assert [file.read_bytes() for file in files] == before
    assert result["images_seen"] == 80
    ema, raw = result["ema"], result["raw"]
    assert ema["loss"]["count"] == 11
    assert ema["loss"] != raw["loss"]
    gap = ema["without_captions"]["mean"] - ema["loss"]["mean"]
    assert ema["caption_gap"]["mean"] == pytest.approx(gap, rel=1e-4)
    assert sum(part["count"] for part in ema["bins"]) == 11
    total = sum(part["count"] * part["mean"] for part in ema["bins"]) / 11
    assert ema["loss"]["mean"] == pytest.approx(total, rel=1e-5)
    curves = scalars(result)
    assert curves["ema"] == loss_of(result) == ema["loss"]["mean"]
    gap = ema["shuffled_captions"]["mean"] - ema["loss"]["mean"]
    assert ema["shuffle_gap"]["mean"] == pytest.approx(gap, rel=1e-4)
    assert {"raw", "ema_caption_gap", "ema_without_captions", "ema_shuffle_gap"} < set(curves)
    for weights in ("ema", "raw"):
        bins = [name for name in curves if name.startswith(f"{weights}_logsnr_")]
        assert len(bins) == len(result[weights]["bins"])


def test_another_snapshot_or_setting_makes_a_result_stale(helpers, project: str):
    config = small(helpers, project, grid=0)
    write_snapshot(config, 80)
    assert task(config, 80)(CPU) is not None
    assert task(config, 80).results.of_snapshot("000000000080") is not None
    fewer = small(helpers, project, grid=0, validate=4)
    assert task(fewer, 80).results.of_snapshot("000000000080") is None
    write_snapshot(config, 80, seed=5)  # trained again, after a lost worker
    assert task(config, 80).results.of_snapshot("000000000080") is None


def test_members_without_text_have_one_loss(helpers, project: str):
    network = {"text_dim": 0, "cross_attention": (False,)}
    config = helpers.changed(small(helpers, project, grid=0), "base", network=network)
    write_snapshot(config, 80)
    result = task(config, 80)(CPU)
    assert result is not None
    assert set(result["ema"]) == {"loss", "bins"}


def test_self_conditioning_members_and_crops_are_validated_as_they_are_trained(helpers, project):
    config = helpers.changed(small(helpers, project), "base", network={"self_conditioning": True})
    ((batch, _), *_) = course(config).batches(bad := Counter())
    assert set(batch.self_cond.tolist()) <= {0.0, 1.0}
    assert not bad
    section = dataclasses.replace(config.train["sr1"], crop_px=8)
    crops = dataclasses.replace(config, train={"sr1": section})
    whole, cut = (next(course(c, "sr1").batches(Counter()))[0] for c in (config, crops))
    assert (cut.x0 == whole.x0[..., 4:12, 4:12]).all()
    assert (cut.lowres == whole.lowres[..., 2:6, 2:6]).all()


def test_images_that_cannot_be_decoded_are_counted(helpers, project: str):
    config = small(helpers, project)
    heldout = HeldOut.open(config, "base", 11)
    shard, row = heldout.places[0]
    tar = Path(heldout.prepared.shards[shard].tar)
    image = heldout.prepared.image(shard, row)
    tar.write_bytes(tar.read_bytes().replace(image, bytes(len(image))))
    write_snapshot(config, 80)
    result = task(config, 80)(CPU)
    assert result is not None
    assert result["bad"] == {"unreadable": 1}
    assert result["ema"]["loss"]["count"] == 10


def test_a_snapshot_that_was_deleted_is_no_failure(helpers, project: str):
    assert task(small(helpers, project), 80)(CPU) is None


def test_a_task_computes_in_float32_also_on_cards_that_round(helpers, project, monkeypatch):
    seen, exact = [], validation.losses
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for backend in backends:
        backend.allow_tf32 = True

    def losses(*args):
        seen.extend(backend.allow_tf32 for backend in backends)
        return exact(*args)

    monkeypatch.setattr(validation, "losses", losses)
    config = small(helpers, project, grid=0)
    write_snapshot(config, 80)
    task(config, 80)(CPU)
    assert seen == [False] * 4


def test_too_few_values_have_no_error():
    assert validation.mean(np.zeros(0)) == {"mean": None, "sem": None, "count": 0}
    assert validation.mean(np.ones(1)) == {"mean": 1.0, "sem": None, "count": 1}
    assert validation.mean(np.array([1.0, 2.0, 3.0, 4.0]))["sem"] == pytest.approx(0.3535534)


def test_the_error_is_that_of_strata_in_any_order_of_the_samples():
    draw, n, means, told = np.random.default_rng(0), 64, [], []
    for _ in range(400):
        times = (draw.permutation(n) + draw.random(n)) / n
        values = (0.02 + 0.5 * times**2) * (1 + 0.2 * draw.normal(size=n))
        body = validation.summary(validation.Losses(-times, values, values + 1, None, {}))
        means.append(values.mean())
        told.append(body["loss"]["sem"])
        assert body["caption_gap"]["sem"] == pytest.approx(0, abs=1e-9)
    assert np.mean(told) == pytest.approx(np.std(means), rel=0.15)
    assert np.mean(told) < values.std() / n**0.5 / 2
