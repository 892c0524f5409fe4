import json

from PIL import Image
from rich.console import Console

from imagen import storage
from pipeline import report
from pipeline.run import Outcome
from pipeline.stages import Stage
from runtime.state import StageState

METRICS = {
    "digit_accuracy": {"value": 0.955, "interval": [0.917, 0.976]},
    "per_digit": {"0": {"value": 1.0}, "1": {"value": 0.91}},
}


def stage(outputs=()):
    state = StageState(stage="eval", status="done", detail="all", outputs=tuple(outputs))
    return Stage(name="eval", arguments=(), state=lambda: state)


def test_the_end_of_a_run_tells_times_accuracy_files_and_the_next_command(tmp_path, capsys):
    folder = str(tmp_path)
    outputs = [storage.join(folder, n) for n in ("grid.png", "metrics.json", "report.html")]
    storage.put(outputs[1], json.dumps(METRICS).encode())
    report.summary([stage(outputs)], Outcome(seconds={"eval": 75.2}), "runs/digits")
    told = capsys.readouterr().out
    assert "1:15" in told
    assert "digit accuracy: 95.5% (95 % interval 91.7% to 97.6%)" in told
    assert "per digit: 0 100%  1 91%" in told
    assert f"grid: {outputs[0]}" in told
    assert f"report: {outputs[2]}" in told
    assert told.endswith('imagen sample "seven" --cascade runs/digits/cascade --out seven.png\n')


def test_a_terminal_is_shown_the_picture(tmp_path):
    path = storage.join(str(tmp_path), "preview.png")
    Image.new("L", (40, 20), 255).save(path)
    console = Console(width=80, force_terminal=True, color_system="truecolor")
    with console.capture() as shown:
        report.picture(console, [path])
    assert shown.get().count("▀") == 40 * 10


def test_a_rerun_of_a_finished_line_shows_the_results_without_times(capsys):
    report.summary([stage()], Outcome(), "runs/digits")
    told = capsys.readouterr().out
    assert "done before" not in told
    assert told.startswith("next: ")


def test_what_was_not_judged_has_no_accuracy():
    assert report.accuracy({}) == []
    assert report.accuracy({"digit_accuracy": None}) == []


def test_times_are_told_in_minutes_and_seconds():
    assert [report.clock(s) for s in (0.4, 59.6, 3600)] == ["0:00", "1:00", "60:00"]


def test_results_are_those_of_the_evaluation_whatever_comes_after_it(tmp_path, capsys):
    grid = f"{tmp_path}/grid.png"
    elsewhere = StageState(stage="publish", status="done", detail="", outputs=("report.html",))
    publish = Stage(name="publish", arguments=(), state=lambda: elsewhere)
    report.summary([stage([grid]), publish], Outcome(), "runs/digits")
    told = capsys.readouterr().out
    assert f"grid: {grid}" in told
    assert "report:" not in told
