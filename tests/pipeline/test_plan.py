"""`python -m pipeline plan`: what a run would do, take and cost."""

import argparse
import io
import json
import re

import pytest
from PIL import Image

from imagen import storage
from imagen.data.tars import write_tar
from pipeline import config as configs
from pipeline import footprint, plan, prices, stages, work
from pipeline.commands import plan as command
from pipeline.costs import Progress
from runtime import cli
from runtime.state import StageState
from train import dryrun, flops

DIGITS = "pipeline/configs/digits.yaml"


def made(folder, *overrides, machine=None):
    config = configs.load(DIGITS, [f"out={folder}", *overrides])
    return plan.plan(config, stages.line(config), prices.load(), machine)


def items(found):
    return {item.stage: item for item in found.items}


def call(*words):
    parser = argparse.ArgumentParser()
    command.add(parser)
    command.run(cli._parse(parser, words))


def write_log(folder, member="base", device="cpu", rate=100.0, mfu=0.2, workers=2):
    events = [
        {"event": "start", "images_seen": 0, "world_size": workers, "device": device},
        {"images_seen": 6400, "images_per_s": rate, "world_size": workers, "mfu": mfu},
    ]
    lines = [json.dumps({"time": 1000.0 + i, **event}) for i, event in enumerate(events)]
    storage.put(f"{folder}/{member}/log.jsonl", "\n".join(lines).encode() + b"\n")


def partial(detail):
    return StageState(stage="train base", status="partial", detail=detail)


@pytest.fixture
def tars(tmp_path):
    """Two tar shards of five captioned images each."""
    png = io.BytesIO()
    Image.new("L", (32, 32)).save(png, "png")
    for shard in range(2):
        text = [f"the digit {n}, number {shard}" for n in range(5)]
        rows = [
            (f"k{shard}{n}", {"png": png.getvalue(), "txt": t.encode()}) for n, t in enumerate(text)
        ]
        storage.put(f"{tmp_path}/tars/{shard:05d}.tar", write_tar(rows))
    return f"{tmp_path}/tars"


def test_before_there_is_data_it_plans_what_can_be_known_and_says_what_cannot(tmp_path):
    found = made(tmp_path / "none")
    assert found.unknown == ["import", "preencode", "publish"]
    by = items(found)
    assert by["train base"].work.left == 38400
    assert "no finished import" in by["preencode"].work.source
    assert {kept.kind for kept in found.kept if kept.num_bytes is None} == {
        *("tar shards", "index", "embeddings")
    }
    assert not (tmp_path / "none").exists()


def test_a_rate_that_was_never_measured_is_operations_over_a_share_of_the_peak(tmp_path):
    item = items(made(tmp_path))["train base"]
    table = prices.load()
    ops = flops.training_flops(configs.load(DIGITS).train.members["base"])
    assert item.work.per_s == pytest.approx(table.assumed.mfu * 60e12 / ops)
    assert item.work.source.startswith("assumed: 30% of 60 TFLOPS (L4)")
    hours = 38400 / item.work.per_s / 3600
    assert item.usd["spot"] == pytest.approx(hours * table.machines["g2-standard-8"].spot)
    assert item.hours == pytest.approx(hours / 2)  # workers: [1, 2]


def test_a_core_is_measured_here(tmp_path):
    item = items(made(tmp_path, machine="e2-standard-8"))["train base"]
    assert not item.gpu
    assert "a core, measured here now" in item.work.source


def test_what_the_run_has_measured_counts_before_what_is_assumed(tmp_path):
    write_log(tmp_path)
    work = items(made(tmp_path, machine="e2-standard-8"))["train base"].work
    assert work.per_s == pytest.approx(50.0)  # of one worker of two
    assert work.source == "measured: 50 images/s a worker of its log.jsonl"
    assert work.left == 38400  # the log tells of no checkpoint
    assert work.worker_hours == pytest.approx(38400 / 50 / 3600)


def test_what_a_checkpoint_has_is_not_done_again():
    config, machine = configs.load(DIGITS), prices.load().machines["e2-standard-8"]
    progress = Progress(done=9000, total=38400, unit="images", per_s=100.0, workers=2)
    for state, left in (
        (partial("6,400 of 38,400 images"), 32000),
        (StageState(stage="train base", status="stale", detail="images was 9000"), 29400),
    ):
        assumed = prices.load().assumed
        assert work.of_training(config, "base", state, progress, machine, assumed).left == left


def test_what_cores_have_measured_says_nothing_of_a_gpu(tmp_path):
    write_log(tmp_path)
    assert "assumed" in items(made(tmp_path))["train base"].work.source


def test_the_rate_of_one_card_is_carried_to_another_by_its_share_of_the_peak(tmp_path):
    ops = flops.training_flops(configs.load(DIGITS).train.members["base"])
    rate = 2 * 0.4 * 60e12 / ops  # two L4 at an MFU of 40 %
    write_log(tmp_path, device="cuda:0", rate=rate, mfu=0.4)
    same = items(made(tmp_path))["train base"].work
    assert same.per_s == pytest.approx(rate / 2)
    assert "of each L4 of its log.jsonl" in same.source
    other = items(made(tmp_path, machine="a3-highgpu-1g"))["train base"].work
    assert other.per_s == pytest.approx(0.4 * 494e12 / ops)
    assert other.source == "measured: MFU 40.0% of its log.jsonl, on another card than H100"


def test_tars_that_are_there_tell_how_much_is_to_encode(tmp_path, tars):
    found = made(tmp_path / "out", "source=null", f"data.tars={tars}")
    todo = items(found)["preencode"].work
    assert todo.left == pytest.approx(10 * 6, rel=0.5)  # ten captions of about six tokens
    assert todo.source.startswith("assumed: 15%")
    assert todo.worker_hours > 0
    kept = {one.kind: one for one in found.kept}
    assert kept["embeddings"].num_bytes > todo.left * 256 * 2  # float16 vectors and keys
    assert kept["tar shards"].num_bytes == sum(storage.sizes(tars).values())
    assert found.requests.reads == 2 * 5 + 2 * 2 * 2 * footprint.SHARD_READS


def test_a_machine_with_gpus_is_not_what_cores_encode_on(tmp_path, tars):
    words = ("source=null", f"data.tars={tars}")
    usual = items(made(tmp_path / "out", *words))["preencode"]
    found = items(made(tmp_path / "out", *words, machine="a3-highgpu-1g"))
    assert (found["preencode"].machine, found["preencode"].gpu) == ("e2-standard-8", False)
    assert found["preencode"].usd == pytest.approx(usual.usd, rel=0.5)  # a core is measured anew
    assert found["train base"].machine == "a3-highgpu-1g"


def test_actors_that_share_a_gpu_fill_it_and_take_no_longer_together(tmp_path, tars):
    def encoding(share, *more, **machine):
        words = (f"data.tars={tars}", f"preencode.gpus_per_actor={share}", *more)
        return items(made(tmp_path / "out", "source=null", *words, **machine))["preencode"]

    whole, half, two = encoding(1), encoding(0.5), encoding(0.5, "preencode.actors=2")
    assert half.work.worker_hours == pytest.approx(whole.work.worker_hours)
    assert half.hours == pytest.approx(whole.hours)  # two actors on the card of one machine
    assert two.hours == pytest.approx(whole.hours)
    cores = encoding(0.5, machine="e2-standard-8").work
    assert cores.per_worker == 1.0  # an actor takes a core


def test_an_encoder_that_is_not_here_is_said_to_be_unknown(tmp_path, tars):
    gone = f"text.encoder={tmp_path}/t5"
    found = made(tmp_path / "out", "source=null", f"data.tars={tars}", gone)
    assert items(found)["preencode"].work.source.startswith("not known yet: ")


def test_operations_of_an_encoder_follow_from_its_shape(tmp_path):
    text = configs.load(DIGITS).preencode.text
    from imagen.text.tiny_t5 import build_model

    blocks = [
        weight.numel()
        for name, weight in build_model().named_parameters()
        if re.search(r"(SelfAttention|DenseReluDense)\.(?!relative)\w+\.weight$", name)
    ]
    assert work.operations_a_token(text) == 2 * sum(blocks)


def test_guidance_and_sweeps_count_among_the_images_of_an_evaluation(tmp_path):
    config = configs.load(DIGITS, [f"out={tmp_path}", "eval.sweeps={}"])
    machine, assumed = prices.load().machines["g2-standard-8"], prices.load().assumed
    plain = work.of_evaluation(config, Progress(), machine, assumed)
    assert plain.left == 200
    guided = work.operations_an_image(config, config.eval.eval.options)
    off = configs.load(DIGITS, ["members.base.sampling.guidance_scale=1"])
    unguided = work.operations_an_image(off, off.eval.eval.options)
    base = flops.training_flops(config.train.members["base"]) * dryrun.FORWARD * 16
    assert guided - unguided == pytest.approx(base)
    swept = configs.load(DIGITS, [f"out={tmp_path}"])
    assert work.of_evaluation(swept, Progress(), machine, assumed).left == 200 + 15 * 20


def test_the_sums_are_of_all_stages_and_of_the_head(tmp_path):
    found = made(tmp_path)
    known = [item for item in found.items if item.work.worker_hours]
    by_hand = sum(item.usd["spot"] for item in known) + found.head_usd
    assert found.total("spot") == pytest.approx(by_hand)
    longest = max(items(found)[f"train {m}"].hours for m in ("base", "sr1"))
    assert found.hours == pytest.approx(longest + items(found)["eval"].hours)
    assert found.storage_usd_month == pytest.approx(found.stored / 1e9 * 0.02)


def test_milestones_and_profiles_take_room(tmp_path):
    def stored(*overrides):
        kept = {one.kind: one.num_bytes for one in made(tmp_path, *overrides).kept}
        return kept["train base"]

    usual = stored()
    assert stored("train.base.ema_profiles=[0.05, 0.1]") > usual
    assert stored("train.base.milestone_every=9600") > usual
    assert stored("train.base.keep_checkpoints=1") < usual


def test_requests_of_a_training_are_its_checkpoints_snapshots_and_reads(tmp_path, tars):
    config = configs.load(DIGITS, [f"out={tmp_path}", "source=null", f"data.tars={tars}"])
    storage.put(f"{tmp_path}/index/manifest.json", b"{}")  # encoded: nothing of it is left
    asked = footprint.requests(config, {"base": 6400}, hours=1.0)
    checkpoints, snapshots = 6400 // 3200, 1
    assert asked.writes == checkpoints * 4 * 2 + snapshots * 3 + 360  # the log, every ten seconds
    assert asked.reads == 2 * footprint.SHARD_READS * 2
    assert asked.usd(prices.load()) == pytest.approx(asked.writes * 5e-6 + asked.reads * 4e-7)


def test_the_command_tells_people_what_where_from_and_how_much(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    call(DIGITS, f"out={tmp_path}")
    told = capsys.readouterr().out
    for text in ("yes: missing", "assumed: 30% of 60 TFLOPS", "GPU-hours", "with spot machines",
                 "checkpoints of", "a month in a bucket", "not in it  import, preencode, publish",
                 "small ones stay far below", "us-central1"):  # fmt: skip
        assert text in told, text


def test_the_command_tells_programs_the_same_and_only_looks(tmp_path, capsys):
    write_log(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    call(DIGITS, f"out={tmp_path}", "--json", "--machine", "e2-standard-8")
    told = json.loads(capsys.readouterr().out)
    base = {one["stage"]: one for one in told["stages"]}["train base"]
    assert (base["runs"], base["machine"], base["gpu"]) == (True, "e2-standard-8", False)
    assert base["rate_from"].startswith("measured")
    assert told["unknown"] == ["import", "preencode", "publish"]
    assert "machines" in told["prices"]["sources"]
    assert sorted(tmp_path.rglob("*")) == before
