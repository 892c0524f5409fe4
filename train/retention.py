"""Which checkpoints and snapshots of a run stay: the newest, milestones, the best, what is named.

Training that falls back from a damaged checkpoint leaves newer ones behind. They are not what is
newest: they go as soon as there is one of now. Newer ones that were not there when this start began
are of another start, which took this one for dead: they stay.

Deleted manifest first: what is half deleted is not complete, and is never read.
"""

from collections.abc import Collection, Iterable, Sequence

from imagen import checkpoint, manifest, snapshot, storage
from imagen.errors import ShardError
from train import rundir
from train.job import Job


def found(job: Job) -> list[int]:
    """Return the snapshots there are, complete or not, as a start finds them."""
    return [int(name) for name in _names(storage.join(job.run_dir, rundir.SNAPSHOTS))]


def checkpoints(job: Job, now: int, earlier: Collection[int]) -> None:
    """Delete all checkpoints but the newest `keep_checkpoints` up to `now`, and the milestones.

    `now`: of the one that was just written; `earlier`: those that this start has found.
    """
    there = checkpoint.saved(job.checkpoints)
    for images_seen in _outdated(there, now, earlier, job.train.keep_checkpoints, job):
        folder = storage.join(job.checkpoints, checkpoint.folder_name(images_seen))
        delete(folder, checkpoint.MANIFEST)


def snapshots(job: Job, now: int, earlier: Collection[int]) -> None:
    """Delete all snapshots but the newest `keep_snapshots` up to `now`, the milestones, the best
    one by validation and the one that the manifest of a finished run names; none when it is 0.

    `now`: of the one that was just written; `earlier`: those that this start has found.
    """
    if not job.train.keep_snapshots:
        return
    folder = storage.join(job.run_dir, rundir.SNAPSHOTS)
    there = [int(name) for name in _names(folder) if _is_complete(folder, name)]
    for images_seen in _outdated(there, now, earlier, job.train.keep_snapshots, job):
        name = checkpoint.folder_name(images_seen)
        named = _named(job.run_dir)  # each time: validation may find a better one meanwhile
        if named is not None and storage.join(rundir.SNAPSHOTS, name) not in named:
            delete(storage.join(folder, name), snapshot.MANIFEST)


def _outdated(
    there: Sequence[int], now: int, earlier: Collection[int], keep: int, job: Job
) -> list[int]:
    """Return which of the ascending `there` can go now that `now` is written."""
    abandoned = [images_seen for images_seen in there if images_seen > now]
    own = [images_seen for images_seen in there if images_seen <= now]
    gone = outdated(own, keep, job.train.milestone_every)
    return gone + [images_seen for images_seen in abandoned if images_seen in earlier]


def outdated(saved: Sequence[int], keep: int, milestone_every: int) -> list[int]:
    """Return which of the ascending `saved` can go: neither of the newest `keep` nor a milestone.

    A milestone is the first at or after a multiple (above 0) of `milestone_every`; 0: there is
    none.
    """
    stay = set(saved[-keep:]) | set(_milestones(saved, milestone_every))
    return [images_seen for images_seen in saved if images_seen not in stay]


def _milestones(saved: Iterable[int], every: int) -> list[int]:
    found, reached = [], 0
    for images_seen in saved:
        if every and images_seen // every > reached:
            reached = images_seen // every
            found.append(images_seen)
    return found


def _names(folder: str) -> list[str]:
    width = len(checkpoint.folder_name(0))
    return [n for n in storage.listdir(folder) if n.isdecimal() and len(n) == width]


def _is_complete(folder: str, name: str) -> bool:
    return storage.exists(storage.join(folder, name, snapshot.MANIFEST))


def _named(run_dir: str) -> set[str] | None:
    """Return the snapshots, relative to the run, that other files of the run point to.

    None when one of the files is damaged: nobody knows then what it points to.
    """
    files = [(rundir.BEST, rundir.BEST_KIND), (rundir.MANIFEST, rundir.KIND)]
    paths = [(storage.join(run_dir, file), kind) for file, kind in files]
    try:
        return {
            manifest.read(path, kind)["snapshot"] for path, kind in paths if storage.exists(path)
        }
    except (ShardError, KeyError):
        return None


def delete(folder: str, manifest_name: str) -> None:
    """Delete a folder of files and their manifest, the manifest first."""
    storage.delete(storage.join(folder, manifest_name))
    for name in storage.listdir(folder):
        storage.delete(storage.join(folder, name))
    storage.delete_folder(folder)
