import dataclasses
import pickle

import numpy as np
import pytest
import torch

from imagen import config as configs
from imagen.data.images import decode
from imagen.data.order import rank_slice
from imagen.errors import ShardError
from train.config import TrainStageConfig
from train.data import Microbatch, Positions, Samples, loader, pad, shares, to_device
from train.worker import Inputs


def samples(helpers, project: str, member: str = "base", **train: object) -> Samples:
    return of(helpers.make_config(project, **train), member)


def of(config: TrainStageConfig, member: str) -> Samples:
    return Inputs.open(config, member).samples(config, member)


def only(config: TrainStageConfig, member: str, **train: object) -> TrainStageConfig:
    """Return a config in which only `member` is trained, with keys set."""
    section = dataclasses.replace(config.train[member], **train)
    return dataclasses.replace(config, train={member: section})


def same(a: Microbatch, b: Microbatch) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("microbatch", [1, 3, 8])
def test_microbatches_of_all_ranks_cut_the_global_batch(world: int, microbatch: int):
    parts = [part for rank in range(world) for part in shares(8, microbatch, rank, world)]
    assert [j for part in parts for j in part] == list(range(8))
    assert max(map(len, parts)) <= microbatch
    for rank in range(world):
        start, stop = rank_slice(8, rank, world)
        assert sum(map(len, shares(8, microbatch, rank, world))) == stop - start


@pytest.mark.parametrize(("member", "crop_px"), [("base", 0), ("sr1", 0), ("sr1", 8)])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_a_global_batch_and_its_draws_are_the_same_for_any_world(
    helpers, project, member, crop_px, world
):
    config = helpers.changed(
        helpers.make_config(project), member, network={"self_conditioning": True}
    )
    data = of(only(config, member, crop_px=crop_px), member)
    step = 13
    whole = data.__getitems__([step * 8 + j for j in range(8)])
    parts = [
        data.__getitems__([step * 8 + j for j in part])
        for rank in range(world)
        for part in shares(8, 2, rank, world)
    ]
    assert sum((part.keys for part in parts), ()) == whole.keys
    for name in set(Microbatch._fields) - {"bad", "keys"}:
        values = [getattr(part, name) for part in parts]
        if values[0] is not None:
            assert torch.equal(torch.cat(values), getattr(whole, name)), name


def test_images_and_texts_are_those_of_the_order(helpers, project: str):
    data = samples(helpers, project)
    batch = data.__getitems__(range(8))
    shards, at = data.order.batch(0)
    tokens = batch.tokens.split(batch.lengths.tolist())
    for i, (shard, a) in enumerate(zip(shards.tolist(), at.tolist(), strict=True)):
        row = int(data.prepared.rows(shard, "train")[a])
        assert (
            decode(data.prepared.image(shard, row), (8,), 1)[0] == batch.pixels[i].numpy()
        ).all()
        assert (data.embeddings.tokens(shard, row) == tokens[i].numpy()).all()


def test_super_resolution_sees_the_same_picture_at_both_sizes(helpers, project: str):
    batch = samples(helpers, project, "sr1").__getitems__(range(8))
    assert batch.pixels.shape == (8, 1, 16, 16)
    assert batch.lowres is not None
    assert batch.aug_eps is not None
    assert batch.aug_level is not None
    assert batch.lowres.shape == batch.aug_eps.shape == (8, 1, 8, 8)
    blocks = batch.pixels.float().reshape(8, 8, 2, 8, 2).mean((2, 4))
    assert (blocks - batch.lowres[:, 0]).abs().mean() < 12
    assert ((batch.aug_level >= 0) & (batch.aug_level < 1)).all()


def test_captions_are_dropped_at_the_wanted_rate(helpers, project: str):
    data = samples(helpers, project, caption_drop=0.25)
    kept = torch.cat([data.__getitems__(range(s, s + 8)).keep for s in range(0, 1600, 8)])
    assert set(kept.tolist()) == {0.0, 1.0}
    assert abs(1 - float(kept.mean()) - 0.25) < 0.04


def test_half_of_the_samples_see_their_own_estimate_where_the_network_can(helpers, project: str):
    assert samples(helpers, project).__getitems__(range(8)).self_cond is None
    config = helpers.changed(
        helpers.make_config(project), "base", network={"self_conditioning": True}
    )
    data = of(dataclasses.replace(config, seed=0), "base")
    parts = [data.__getitems__(range(s, s + 8)) for s in range(0, 1600, 8)]
    drawn = torch.cat([part.self_cond for part in parts if part.self_cond is not None])
    assert drawn.dtype == torch.float32
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.5) < 0.04
    kept = torch.cat([part.keep for part in parts])
    assert abs(float(torch.corrcoef(torch.stack([drawn, kept]))[0, 1])) < 0.08  # own draws
    batch = to_device(parts[0], torch.device("cpu"))
    assert batch.self_cond is not None
    assert torch.equal(batch.self_cond, drawn[:8])


def test_crops_are_parts_of_the_pictures_with_noise_of_their_shape(helpers, project: str):
    whole = samples(helpers, project, "sr1").__getitems__(range(8))
    data = of(only(helpers.make_config(project), "sr1", crop_px=8), "sr1")
    batch = data.__getitems__(range(8))
    assert whole.lowres is not None
    assert batch.lowres is not None
    assert batch.pixels.shape == batch.eps.shape == (8, 1, 8, 8)
    assert batch.lowres.shape == (8, 1, 4, 4)
    assert batch.aug_eps is not None
    assert batch.aug_eps.shape == (8, 1, 4, 4)
    assert data.crops is not None
    places = data.crops.places(3, range(8))
    assert len(set(places)) > 3
    for i, (row, column) in enumerate(places):
        low = whole.lowres[i, :, row : row + 4, column : column + 4]
        high = whole.pixels[i, :, 2 * row : 2 * row + 8, 2 * column : 2 * column + 8]
        assert torch.equal(batch.lowres[i], low)
        assert torch.equal(batch.pixels[i], high)
    assert torch.equal(batch.t, whole.t)
    assert torch.equal(batch.keep, whole.keep)
    again = data.__getitems__(range(8))  # from decoded pictures, which are whole
    assert same(batch, again)
    later = data.crops.places(3, range(80, 88))
    assert later != places  # another epoch shows another part


def test_pictures_may_be_wider_than_high(helpers, project: str):
    tree = {**helpers.TREE, "out": project}
    tree["members"] = {
        "base": {**tree["members"]["base"], "size": [8, 16]},
        "sr1": {**tree["members"]["sr1"], "size": [16, 32]},
    }
    config = configs.build(TrainStageConfig, tree)
    batch = of(config, "sr1").__getitems__(range(8))
    assert batch.pixels.shape == batch.eps.shape == (8, 1, 16, 32)
    assert batch.lowres is not None
    assert batch.lowres.shape == (8, 1, 8, 16)
    assert torch.equal(batch.lowres, of(config, "base").__getitems__(range(8)).pixels)


def test_a_member_without_text_is_given_none(helpers, project: str):
    network = {"text_dim": 0, "cross_attention": (False, False)}
    config = helpers.changed(helpers.make_config(project), "sr1", network=network)
    part = of(config, "sr1").__getitems__(range(8))
    assert part.tokens is None
    assert part.lengths is None
    assert to_device(part, torch.device("cpu")).text is None


def test_a_bad_image_has_weight_0_and_shifts_nothing(helpers, tmp_path):
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    helpers.write_data(good)
    helpers.write_data(bad)
    clean = samples(helpers, good)
    shard, at = clean.order.batch(0)
    row = int(clean.prepared.rows(int(shard[3]), "train")[int(at[3])])
    spoil(bad, clean, int(shard[3]), row)
    expected, found = clean.__getitems__(range(8)), samples(helpers, bad).__getitems__(range(8))
    key = clean.prepared.key(int(shard[3]), row)
    assert len(found.bad) == 1
    assert (found.bad[0].key, found.bad[0].reason) == (key, "unreadable")
    assert found.bad[0].detail.startswith("not a readable image")
    assert found.keys == expected.keys
    assert found.weight.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert not found.pixels[3].any()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(found.pixels[others], expected.pixels[others])
    assert torch.equal(found.eps, expected.eps)


def spoil(folder: str, data: Samples, shard: int, row: int) -> None:
    """Overwrite the middle of one image in a tar of the same layout."""
    prepared = data.prepared
    entry = np.load(f"{prepared.index_dir}/{prepared.shards[shard].name}.index.npy")[row]
    with open(f"{folder}/data/{prepared.shards[shard].name}.tar", "r+b") as file:
        file.seek(int(entry["image_offset"]))
        file.write(bytes(int(entry["image_bytes"])))


def test_a_replaced_tar_is_an_error_not_a_bad_image(helpers, project: str):
    data = samples(helpers, project)
    tar = f"{project}/data/00000.tar"
    with open(tar, "r+b") as file:
        content = file.read().replace(b"s00", b"x00")
        file.seek(0)
        file.write(content)
    with pytest.raises(ShardError, match="has changed since it was indexed"):
        [data.__getitems__(range(start, start + 8)) for start in range(0, 80, 8)]


def test_a_loader_starts_at_any_step(helpers, project: str):
    data = samples(helpers, project)
    parts = shares(8, 3, 0, 1)
    went = list(loader(data, Positions(parts, 8, 0, 6), 0, pin=False))
    resumed = list(loader(data, Positions(parts, 8, 4, 6), 0, pin=False))
    assert len(went) == 18
    assert len(resumed) == 6
    assert all(same(a, b) for a, b in zip(went[12:], resumed, strict=True))


@pytest.mark.slow
def test_loader_processes_change_nothing(helpers, project: str):
    data = samples(helpers, project, "sr1")
    positions = Positions(shares(8, 4, 0, 1), 8, 0, 3)
    alone = list(loader(data, positions, 0, pin=False))
    helped = list(loader(data, positions, 2, pin=False))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_samples_survive_pickling(helpers, project: str):
    data = samples(helpers, project)
    copy = pickle.loads(pickle.dumps(data))
    assert same(copy.__getitems__(range(8)), data.__getitems__(range(8)))


def test_packed_tokens_are_padded_with_a_mask():
    tokens = torch.arange(10, dtype=torch.float16).reshape(5, 2)
    text = pad(tokens, torch.tensor([2, 3]))
    assert text.emb.shape == (2, 8, 2)
    assert text.mask.sum(1).tolist() == [2, 3]
    assert torch.equal(text.emb[text.mask], tokens.float())
    assert not text.emb[~text.mask].any()


def test_the_loss_gets_scaled_pixels_and_padded_text(helpers, project: str):
    part = samples(helpers, project, "sr1").__getitems__(range(8))
    batch = to_device(part, torch.device("cpu"))
    assert batch.lowres is not None
    assert batch.x0.min() >= -1
    assert batch.x0.max() <= 1
    assert torch.equal(batch.x0, part.pixels.float() / 127.5 - 1)
    assert batch.lowres.dtype == torch.float32
    assert batch.t.dtype == torch.float64
