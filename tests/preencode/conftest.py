import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from imagen import storage
from imagen.config import load_config
from imagen.data import embeddings, prepared
from imagen.data.tars import Tar, write_tar
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, load_encoder
from preencode import shard
from preencode.config import PreencodeConfig
from preencode.shard import Job

CONFIG = Path(__file__).parents[2] / "pipeline" / "configs" / "digits.yaml"


@pytest.fixture
def config(tmp_path) -> Callable[..., PreencodeConfig]:
    """The demo's config with `out` in a fresh folder, and overrides on top."""

    def make(*overrides: str) -> PreencodeConfig:
        return load_config(PreencodeConfig, str(CONFIG), [f"out={tmp_path}/run", *overrides])

    return make


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    """The built-in encoder with the demo's settings."""
    return load_encoder(TextConfig(max_tokens=32))


@pytest.fixture(scope="session")
def make_job(encoder) -> Callable[..., Job]:
    """A maker of the job of a project in a folder, by the built-in encoder."""

    def make(out: str | Path) -> Job:
        return Job(
            text=encoder.text,
            loaded=encoder.text,
            fingerprint=encoder.fingerprint,
            index_dir=f"{out}/index",
            embedding_dir=f"{out}/embeddings/{encoder.fingerprint}",
            heldout=0.3,
        )

    return make


@pytest.fixture(scope="session")
def publish_sets(encoder) -> Callable[..., None]:
    """What ends a run, for tars whose shards are all done: encoder.json and both set manifests."""

    def publish(job: Job, *tars: Tar) -> None:
        shard.ensure_encoder(job, encoder)
        indexed = [shard.index_manifest(job, tar) for tar in tars]
        embedded = [shard.embedding_manifest(job, tar.name) for tar in tars]
        data = prepared.publish(job.index_dir, indexed, job.heldout)
        embeddings.publish_set(job.embedding_dir, job.fingerprint, data["fingerprint"], embedded)

    return publish


@pytest.fixture
def sample() -> Callable[..., tuple[str, dict[str, bytes]]]:
    """A maker of one sample: `sample("key", "caption")`."""

    def make(key: str, caption: str = "a caption") -> tuple[str, dict[str, bytes]]:
        out = io.BytesIO()
        Image.new("L", (8, 8), len(caption)).save(out, "png")
        return key, {"png": out.getvalue(), "txt": caption.encode()}

    return make


@pytest.fixture
def tars(tmp_path, sample) -> Callable[..., Path]:
    """A folder of tars of somebody else's: `tars(3, 50)` is 3 shards of 50 samples."""

    def make(shards: int, count: int, words: int = 6) -> Path:
        folder = tmp_path / "tars"
        folder.mkdir()
        for number in range(shards):
            parts = [
                sample(
                    f"{number:03d}{i:05d}", " ".join(f"w{(i * 7 + j) % 997}" for j in range(words))
                )
                for i in range(count)
            ]
            (folder / f"{number:05d}.tar").write_bytes(write_tar(parts))
        return folder

    return make


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files below the index and embedding folders of a project, without locks and leftovers."""

    def read(out: Path) -> dict[str, bytes]:
        found = [p for part in ("index", "embeddings") for p in (out / part).rglob("*")]
        return {
            str(p.relative_to(out)): p.read_bytes()
            for p in found
            if p.is_file() and p.name != ".lock" and storage.TEMP_MARK not in p.name
        }

    return read


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A local Ray of two cores; yields the address that drivers in other processes join."""
    from runtime import session

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        with session.connect(num_cpus=2) as address:
            yield address
