import shutil
import subprocess
import sys

import numpy as np
import pytest

from eval import compare as comparing
from eval import differences
from eval.commands import compare as command
from eval.comparison_page import page
from eval.differences import apart, mcnemar, paired
from eval.figures import Figure
from eval.history import Evaluation
from imagen import storage
from imagen.errors import ShardError, StorageError


def folders(config):
    return [f"{config.evals}/{n}" for n in storage.listdir(config.evals) if n[:12].isdigit()]


def test_an_out_stands_for_its_newest_evaluation(run):
    oldest, *_, newest = folders(run)
    assert comparing.find(run.out).folder == newest
    assert comparing.find(oldest).folder == oldest


def test_what_is_no_evaluation_is_refused_with_what_to_name(tmp_path):
    with pytest.raises(StorageError, match=r"is no finished evaluation(.|\n)*hint: name a folder"):
        comparing.find(str(tmp_path))


def test_a_figure_with_a_column_is_compared_by_pairs(run):
    first, _, last = map(comparing.find, folders(run))
    found = comparing.compare(first, last)
    rows = {row.key: row for row in found.rows}
    accuracy = rows["digit_accuracy"].difference
    assert len(found.pairs) == 20
    assert accuracy.pairs == 20
    assert accuracy.value == pytest.approx(0.7)
    assert rows["digit_accuracy"].verdict == "more than chance, B is better"
    assert rows["digit_accuracy"].difference.p == pytest.approx(2 * 0.5**14)
    assert rows["members.base"].difference.pairs is None  # no column is its mean
    assert rows["images.nearest_distance"].difference.value == 0


def test_an_evaluation_against_itself_differs_by_nothing(run):
    one = comparing.find(run.out)
    found = comparing.compare(one, one)
    assert {row.difference.value for row in found.rows} == {0.0}
    assert {row.verdict for row in found.rows} == {"within chance"}


def test_evaluations_with_nothing_in_common_are_refused(run, tiny, leave, tmp_path):
    config = tiny.make_config(tmp_path, seed=7)
    tiny.write_snapshot(config, "base")
    leave.finish(config, {"base": 640}, accuracy=None, memorisation={})
    other = comparing.find(str(tmp_path))
    newest = comparing.find(run.out)
    with pytest.raises(ShardError, match=r"no prompt and seed in common(.|\n)*same eval.prompts"):
        comparing.compare(newest, other)


def test_pictures_are_of_the_same_prompt_and_seed_and_the_most_different_first(run):
    first, _, last = map(comparing.find, folders(run))
    rated = comparing.most_different(comparing.compare(first, last))
    distances = [pair[0] for pair in rated]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0
    ours, theirs = comparing.Pictures(first), comparing.Pictures(last)
    by_hand = [
        float(np.sqrt(((ours(i) / 255.0 - theirs(i) / 255.0) ** 2).mean())) for i in range(20)
    ]
    assert rated[0][1] == int(np.argmax(by_hand))
    assert ours(11).shape == (32, 32, 1)


def test_the_page_shows_both_and_their_pictures(run):
    first, _, last = map(comparing.find, folders(run))
    html = page(comparing.compare(first, last))
    assert html.count("<figure>") == 20
    assert "20.0% → 90.0%" in html
    assert "A wrong, B right" in html
    assert "http" not in html


def test_damaged_samples_are_told_in_the_page(run, tiny, tmp_path):
    shutil.copytree(run.out, tmp_path / "out")
    copied = tiny.make_config(tmp_path / "out")
    first, *_, last = folders(copied)
    for name in storage.listdir(f"{last}/samples"):
        storage.put(f"{last}/samples/{name}", b"torn")
    html = page(comparing.compare(comparing.find(first), comparing.find(last)))
    assert "The pictures cannot be read" in html


def test_the_command_prints_a_table_and_writes_a_page(run, tmp_path, capsys):
    first, _, last = folders(run)
    out = f"{tmp_path}/compare.html"
    command.run(command.parser().parse_args([first, last, "--out", out]))
    told = capsys.readouterr().out
    assert "20 pairs of images with the same prompt and seed" in told
    assert "+70.0 points" in told
    assert told.rstrip().endswith(out)
    assert b"</html>" in storage.get(out)


@pytest.mark.parametrize("name", ["compare", "publish"])
def test_help_needs_no_torch(name):
    code = (
        f"import sys; from eval.commands import {name}; {name}.parser().format_help();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(4000, 4400) == pytest.approx(1.3e-5, rel=0.2)  # as the normal limit has it


def test_the_interval_of_a_paired_difference_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        shared = draw.normal(0, 5, 60)  # what pairs have in common cancels
        first, second = shared + draw.normal(0, 1, 60), shared + 0.3 + draw.normal(0, 1, 60)
        low, high = paired(first, second).interval
        covered += low <= 0.3 <= high
        assert high - low < 1.5
    assert 0.88 <= covered / 200 <= 0.99


def test_a_share_that_does_not_differ_is_within_chance_and_one_that_does_is_not():
    same = np.array([1.0, 0.0] * 30)
    assert paired(same, same).by_chance
    low, high = paired(same, same).interval  # 60 pairs, of which none changed
    assert (-low, high) == pytest.approx((0.0596, 0.0596), abs=1e-4)
    assert not paired(np.zeros(60), same).by_chance
    assert paired(np.array([]), np.array([])) is None


def test_separate_intervals_are_added_by_squares():
    found = apart(Figure(1.0, (0.7, 1.3)), Figure(2.0, (1.6, 2.4)))
    assert found.interval == pytest.approx((0.5, 1.5))
    assert found.by_chance is False
    unknown = apart(Figure(1.0, None), Figure(2.0, (1.6, 2.4)))
    assert (unknown.interval, unknown.by_chance) == (None, None)


def test_shares_that_changed_have_the_interval_of_their_test():
    for lost, won, n in [
        (0, 5, 200),
        (0, 6, 200),
        (1, 8, 20),
        (2, 11, 300),
        (30, 60, 200),
        (1, 0, 9),
    ]:
        first = np.array([1.0] * lost + [0.0] * (n - lost))
        second = np.array([0.0] * lost + [1.0] * won + [0.0] * (n - lost - won))
        found = paired(first, second)
        low, high = found.interval
        assert found.value == pytest.approx((won - lost) / n)
        assert low < found.value < high
        assert found.by_chance == (low <= 0 <= high) == (mcnemar(lost, won) >= 0.05)
        swapped = paired(second, first)
        assert swapped.interval == pytest.approx((-high, -low))


@pytest.mark.parametrize(("lost", "won", "n"), [(0.01, 0.03, 200), (0.1, 0.3, 100), (0, 0.05, 40)])
def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says(lost, won, n):
    draw, covered = np.random.default_rng(0), 0
    for a, b, _ in draw.multinomial(n, [lost, won, 1 - lost - won], 1000):
        low, high = differences._of_shares(int(a), int(b), n)
        covered += low <= won - lost <= high
    assert covered >= 920


def test_few_pairs_are_not_said_to_differ_and_more_do_by_chance_one_time_in_twenty():
    one = paired(np.array([30.1]), np.array([30.2]))
    assert (one.interval, one.by_chance) == (None, None)
    few = paired(np.array([1.0, 2.5, 3.1, 4.0]), np.array([2.0, 3.6, 4.0, 5.1]))
    assert few.by_chance is None
    draw = np.random.default_rng(0)
    alarms = sum(
        not paired(draw.normal(size=5), draw.normal(size=5)).by_chance for _ in range(1000)
    )
    assert 30 <= alarms <= 70


def test_a_figure_is_compared_by_its_own_column_and_not_by_one_that_comes_near():
    def one(mean):
        rows = [{"prompt": "a", "seed": i, "consistency": mean + 1e-6 * i} for i in range(50)]
        members = {"base": 1, "sr1": 1, "sr2": 1}
        return Evaluation("e", {"images_seen": members, "files": {}}), rows

    (a, of_a), (b, of_b) = one(0.0100), one(0.0102)
    a.__dict__["images"], b.__dict__["images"] = of_a, of_b
    same = Figure(0.0101, (0.01, 0.0102))
    found = {
        member: differences.difference(f"fidelity.{member}.consistency", (a, same), (b, same))
        for member in ("sr1", "sr2")
    }
    assert (found["sr1"].value, found["sr1"].pairs) == (0, None)
    assert found["sr2"].value == pytest.approx(0.0002)
    assert found["sr2"].pairs == 50
