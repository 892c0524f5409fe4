import hashlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

import imagen
from eval import history
from eval.card import About
from eval.commands import publish as command
from eval.publish import choose, prepare, publish, refuse, verify
from imagen import storage
from imagen.config import dump_yaml
from imagen.errors import CheckpointError, ConfigError, StorageError


def config_file(config, folder):
    path = f"{folder}/config.yaml"
    storage.put(path, dump_yaml(config).encode())
    return path


def call(config, tmp_path, dest, *more):
    words = [config_file(config, tmp_path), dest, *more]
    command.run(command.parser().parse_args(words))


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def copied(tiny, run, tmp_path):
    """The project of `run`, in a folder of the test's own."""
    shutil.copytree(run.out, tmp_path / "out")
    return tiny.make_config(tmp_path / "out")


@pytest.fixture(scope="module")
def chosen(run):
    found = history.load(run)
    return prepare(found, choose(found, "newest"))


@pytest.mark.slow
def test_what_is_published_is_sampled_in_a_new_process_as_it_was_evaluated(run, tmp_path):
    dest = f"{tmp_path}/published"
    call(run, tmp_path, dest, "--license", "cc-by-4.0", "--data-license", "public domain")
    row = history.load(run).newest.images[0]
    command_line = [
        *(sys.executable, "-m", "imagen.cli", "sample", row["prompt"], "--seed", str(row["seed"])),
        *("--cascade", dest, "--out", f"{tmp_path}/one.png"),
    ]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from eval.compare import Pictures

    stored = Pictures(history.load(run).newest)(0)[:, :, 0]
    with Image.open(f"{tmp_path}/one.png") as picture:
        drawn = np.asarray(picture)
    assert np.abs(drawn.astype(int) - stored).max() <= 2


def test_a_published_folder_says_what_it_is_and_its_checksums_are_right(run, tmp_path, capsys):
    dest = tmp_path / "published"
    call(run, tmp_path, str(dest), "--license", "cc-by-4.0")
    assert "within 0 of 255 levels" in capsys.readouterr().out
    card = (dest / "README.md").read_text()
    for text in (
        *("# tiny digits", "8 to 32 pixels", "| base | 8 | 1,920 |", "cc-by-4.0", "not stated"),
        *("| Digit accuracy | 90.0% | 80.0% to 100.0% | 20 | higher |", "![Samples"),
        *(f"imagen-cascade {imagen.__version__}", "imagen.Cascade.load(", "`tiny-t5`"),
    ):
        assert text in card
    listed = dict(line.split("  ")[::-1] for line in (dest / "SHA256SUMS").read_text().splitlines())
    there = {str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file()}
    assert set(listed) == there - {"cascade.json", "SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((dest / name).read_bytes()).hexdigest() == digest


def test_the_python_of_the_card_works(run, tmp_path):
    dest = tmp_path / "published"
    call(run, tmp_path, str(dest))
    code = re.search(r"```python\n(.*?)```", (dest / "README.md").read_text(), re.DOTALL)[1]
    exec(code.replace("FOLDER", str(dest)).replace("picture.png", f"{tmp_path}/picture.png"), {})
    with Image.open(tmp_path / "picture.png") as drawn:
        assert drawn.size == (32, 32)


def test_publishing_again_writes_nothing(run, chosen, tmp_path):
    dest = tmp_path / "published"
    assert publish(str(dest), chosen, About())
    before = mtimes(dest)
    assert publish(str(dest), chosen, About()) == []
    assert mtimes(dest) == before


def test_a_publish_that_was_killed_goes_on(chosen, tmp_path, monkeypatch):
    dest = f"{tmp_path}/published"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("eval.card.card", die)
        with pytest.raises(KeyboardInterrupt):
            publish(dest, chosen, About())
    assert not storage.exists(f"{dest}/cascade.json")  # the members are there, not their manifest
    refuse(dest, chosen, overwrite=False)
    publish(dest, chosen, About())
    assert imagen.Cascade.load(dest).fingerprint == chosen.evaluation.body["cascade"]


def test_it_publishes_to_object_stores(chosen):
    dest = "memory://published-by-test"
    publish(dest, chosen, About())
    assert imagen.Cascade.load(dest).fingerprint == chosen.evaluation.body["cascade"]
    assert publish(dest, chosen, About()) == []


def test_the_hub_layout_has_fields_that_the_hub_reads(run, chosen, tmp_path):
    for given, wanted in (
        ("apache-2.0", {"license": "apache-2.0"}),
        ("in house", {"license": "other", "license_name": "in house"}),
    ):
        dest = tmp_path / given
        publish(str(dest), chosen, About(layout="hub", weights_license=given))
        _, front, rest = (dest / "README.md").read_text().split("---\n", 2)
        fields = yaml.safe_load(front)
        assert wanted.items() <= fields.items()
        assert fields["pipeline_tag"] == "text-to-image"
        assert "text-to-image" in fields["tags"]
        assert rest.startswith("\n# tiny digits")


def test_another_cascade_is_refused_and_replaced_when_told(run, chosen, tmp_path, capsys):
    dest = f"{tmp_path}/published"
    found = history.load(run)
    other = prepare(found, found.evaluations[0])
    publish(dest, other, About())
    with pytest.raises(StorageError, match=r"holds another cascade(.|\n)*--overwrite"):
        refuse(dest, chosen, overwrite=False)
    call(run, tmp_path, dest, "--overwrite")
    assert imagen.Cascade.load(dest).fingerprint == chosen.evaluation.body["cascade"]
    assert "1,920" in storage.get(f"{dest}/README.md").decode()
    assert len([n for n in storage.listdir(dest) if n.startswith("base-")]) == 1


def test_a_folder_with_other_files_is_refused(chosen, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"is no cascade, but has files: thesis.tex"):
        refuse(str(tmp_path), chosen, overwrite=False)


def test_best_is_by_a_figure_in_its_direction(run):
    found = history.load(run)
    assert choose(found, "best").at == 1920
    assert choose(found, "best", "digit_accuracy").at == 1920
    with pytest.raises(ConfigError, match=r"cannot say which is best(.|\n)*digit_accuracy"):
        choose(found, "best", "memorisation.nearer_than_heldout")


def test_best_by_a_distance_is_the_least(tiny, leave, tmp_path):
    config = tiny.make_config(tmp_path)
    for n, distance in ((640, 3.0), (1280, 5.0)):
        for member in config.members:
            tiny.write_snapshot(config, member, n, seed=n)
        seen = dict.fromkeys(config.members, n)
        leave.finish(config, seen, None, distribution={"pca": {"fd": leave.plain(distance)}})
    assert choose(history.load(config), "best").at == 640
    assert choose(history.load(config), "newest").at == 1280


def test_a_name_that_is_none_is_told_the_names(run):
    with pytest.raises(ConfigError, match=r"no evaluation '42'(.|\n)*000000000640-"):
        choose(history.load(run), "42")


def test_without_an_evaluation_it_says_how_to_make_one(tiny, tmp_path):
    with pytest.raises(StorageError, match=r"no finished evaluation(.|\n)*python -m eval"):
        choose(history.load(tiny.make_config(tmp_path)), "newest")


def test_part_of_a_cascade_is_not_published_by_itself(tiny, leave, tmp_path):
    config = tiny.make_config(tmp_path)
    tiny.write_snapshot(config, "base")
    leave.finish(config, {"base": 640}, None)
    with pytest.raises(StorageError, match="no finished evaluation has all members"):
        choose(history.load(config), "newest")


def test_a_snapshot_that_is_gone_is_found_in_the_assembled_cascade(copied):
    for member in copied.members:
        shutil.rmtree(copied.run_dir(member))
    found = history.load(copied)
    chosen = prepare(found, choose(found, "newest"))
    assert all(folder.startswith(copied.cascade) for folder in chosen.snapshots.values())
    assert verify(chosen) == 0
    shutil.rmtree(copied.cascade)
    with pytest.raises(CheckpointError, match=r"are gone(.|\n)*keep_snapshots"):
        prepare(found, choose(found, "newest"))


def test_a_damaged_member_is_not_published(copied, tmp_path):
    folder = f"{copied.run_dir('sr1')}/snapshots/{1920:012d}"
    (weights,) = [n for n in storage.listdir(folder) if n.startswith("weights")]
    data = bytearray(storage.get(f"{folder}/{weights}"))
    data[-1] ^= 1
    storage.put(f"{folder}/{weights}", bytes(data))
    shutil.rmtree(copied.cascade)
    dest = tmp_path / "published"
    with pytest.raises(CheckpointError, match="was damaged or replaced"):
        call(copied, tmp_path, str(dest))
    assert not dest.exists()


def test_a_cascade_that_draws_something_else_is_not_published(copied, tmp_path):
    newest = history.load(copied).newest
    name = next(n for n in newest.body["files"] if n.startswith("samples/"))
    import safetensors.numpy

    from imagen import manifest

    arrays = safetensors.numpy.load(storage.get(f"{newest.folder}/{name}"))
    arrays["sr1"] = arrays["sr1"][::-1].copy()
    entry = manifest.put_files(newest.folder, {name: safetensors.numpy.save(arrays)})
    body = {**newest.body, "files": newest.body["files"] | entry}
    manifest.write(f"{newest.folder}/manifest.json", "eval", body)
    with pytest.raises(CheckpointError, match=r"otherwise than evaluation(.|\n)*of 255 levels"):
        call(copied, tmp_path, f"{tmp_path}/published")


def test_a_dry_run_checks_and_writes_nothing(run, tmp_path, capsys):
    call(run, tmp_path, f"{tmp_path}/published", "--dry-run")
    assert "verified" in capsys.readouterr().out
    assert not (tmp_path / "published").exists()
