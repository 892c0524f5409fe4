import pytest

from imagen import manifest, storage
from imagen.data import tars
from imagen.errors import ShardError
from preencode import shard
from preencode.commands import inspect
from preencode.commands.histogram import histogram_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, encoder, make_job, publish_sets):
    """A project of two finished shards."""
    import io

    from PIL import Image

    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "png")
    home = tmp_path_factory.mktemp("project")
    job, made = make_job(home), []
    for name in ("a", "b"):
        path = f"{home}/data/{name}.tar"
        parts = [
            (f"{name}{i}", {"png": image.getvalue(), "txt": f"{name} cat {i}".encode()})
            for i in range(3)
        ]
        storage.put(path, tars.write_tar(parts))
        made.append(tars.Tar(path, storage.version(path)))
        shard.process(job, made[-1], lambda: encoder)
    publish_sets(job, *made)
    return home


def told(project, key=None) -> str:
    (folder,) = inspect._folders(str(project))
    encoder = manifest.read(f"{folder}/encoder.json", "encoder")
    lines = inspect.overview(folder, encoder)
    return "\n".join(lines if key is None else inspect.sample(folder, encoder, key))


def test_an_overview_tells_the_encoder_the_counts_and_the_lengths(project):
    found = told(project)
    assert "tiny-t5, 256 wide, at most 32 tokens, computed in float32" in found
    assert "complete        2 shards, 6 samples, 6 distinct captions, 24 tokens" in found
    assert "mean 4.0, longest 4; 6 distinct captions" in found


@pytest.mark.parametrize("key", ["b1", "b:1"])
def test_a_sample_is_found_by_key_and_by_row(project, key):
    found = told(project, key)
    assert "key             b1" in found
    assert "place           shard b, row 1" in found
    assert "caption         'b cat 1'" in found
    assert "embedding       (4, 256) float16" in found
    assert "\n</s> " in found  # the last of its tokens
    assert found.count(" 16.0") + found.count(" 15.9") == 4  # the norm of each


def test_without_the_index_the_embedding_is_still_told(project, tmp_path):
    import shutil

    shutil.copytree(project / "embeddings", tmp_path / "embeddings")
    found = told(tmp_path, "a0")
    assert "caption         not at hand: no finished index in" in found
    assert "embedding       (4, 256)" in found


@pytest.mark.parametrize(
    ("key", "message"),
    [("zebra", "no sample `zebra` in .* in none of 2 shards"), ("a:9", "rows 0 to 2, not 9")],
)
def test_a_sample_that_is_not_there_is_an_error(project, key, message):
    with pytest.raises(ShardError, match=message):
        told(project, key)


def test_a_shard_that_is_being_written_is_not_counted(project, tmp_path):
    import shutil

    shutil.copytree(project, tmp_path / "copy")
    (folder,) = inspect._folders(str(tmp_path / "copy"))
    storage.delete(f"{folder}/manifest.json")
    storage.delete(f"{folder}/b.json")
    assert "unfinished      1 shards so far" in told(tmp_path / "copy")


def test_a_folder_without_embeddings_is_an_error(tmp_path):
    with pytest.raises(ShardError, match="no embeddings in or below"):
        inspect._folders(str(tmp_path))


def test_an_encoders_own_folder_and_a_project_are_both_taken(project):
    (folder,) = inspect._folders(str(project))
    assert inspect._folders(folder) == [folder]
    assert inspect._folders(f"{project}/embeddings") == [folder]


def test_every_length_is_in_one_bar():
    from collections import Counter

    lengths = Counter({1: 5, 2: 1, 77: 3, 128: 1})
    lines = list(histogram_lines(lengths))
    assert len(lines) == 1 + 12
    assert sum(int(line.rsplit(" ", 1)[1].replace(",", "")) for line in lines[1:]) == 10
