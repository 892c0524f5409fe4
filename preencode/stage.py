"""How far the two steps of this stage have come, as their files tell."""

from imagen import storage
from imagen.data.embeddings import EmbeddingSet
from imagen.data.prepared import Prepared
from imagen.errors import ConfigError, ImagenError
from imagen.project import absolute
from preencode import importing
from preencode.config import PreencodeConfig
from preencode.driver import make_job, work_left
from runtime.state import StageState, Status, is_locked


def import_state(config: PreencodeConfig) -> StageState:
    """Return how far `import` has come."""
    config = absolute(config)

    def found(status: Status, detail: str) -> StageState:
        return StageState(stage="import", status=status, detail=detail, outputs=(config.tars,))

    if config.data.tars:
        return _in_place(config)
    if (pid := is_locked(config.tars)) is not None:
        return found("running", f"process {pid}")
    body = importing.done(config)
    if body is not None:
        return found("done", f"{body['samples']:,} samples in {len(body['files'])} tar shards")
    if storage.exists(importing.manifest_path(config)):
        return found("stale", "imported with another source, seed, or files are missing")
    if any(name.endswith(".tar") for name in storage.listdir(config.tars)):
        return found("partial", "an import was begun")
    return found("missing", f"nothing in {config.tars}")


def _in_place(config: PreencodeConfig) -> StageState:
    """The tars are somebody else's: there is nothing to import."""
    try:
        status, detail = "done", f"{len(importing.list_tars(config))} tar shards used in place"
    except ImagenError as err:
        status, detail = "missing", err.message
    return StageState(stage="import", status=status, detail=detail, outputs=(config.tars,))


def encode_state(config: PreencodeConfig) -> StageState:
    """Return how far indexing and encoding have come."""
    config = absolute(config)
    status, detail = _encode_status(config)
    return StageState(
        stage="preencode",
        status=status,
        detail=detail,
        outputs=(config.index, config.embeddings),
    )


def _encode_status(config: PreencodeConfig) -> tuple[Status, str]:
    if (pid := is_locked(config.index)) is not None:
        return "running", f"process {pid}"
    try:
        tars = importing.list_tars(config)
        job = make_job(config, download=False)
    except ImagenError as err:
        return "missing", err.message
    left = work_left(job, tars)
    if left:
        return _unfinished(config, len(left), len(tars))
    try:
        prepared = Prepared.open(config.index)
        found = EmbeddingSet.find(config.embeddings, config.text, prepared)
    except (ImagenError, ConfigError) as err:
        return "partial", err.message
    if [s.name for s in prepared.shards] != [t.name for t in tars]:
        return "stale", "the tar shards are others than those of the data set"
    rows = sum(s.rows for s in prepared.shards)
    return "done", f"{rows:,} samples, embeddings {found.fingerprint}"


def _unfinished(config: PreencodeConfig, left: int, total: int) -> tuple[Status, str]:
    if storage.exists(storage.join(config.index, "manifest.json")):
        return "stale", f"tars, held-out share or encoder changed: {left} of {total} shards to do"
    begun = storage.listdir(config.index)
    if not begun:
        return "missing", f"{total} shards to index and encode"
    return "partial", f"{left} of {total} shards left"
