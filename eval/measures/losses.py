"""The losses that training found for a snapshot on held-out samples, as figures."""

from typing import Any

from eval.measures import intervals
from imagen import manifest, storage

FOLDER, KIND = "validation", "validation"
_GAPS = ("loss", "without_captions", "shuffled_captions", "caption_gap", "shuffle_gap")


def read(run_dir: str, snapshot: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `losses` of the member of a run, for the snapshot whose manifest is given.

    None when it has not been validated, or when the result is of other weights.
    """
    name = f"{int(snapshot['provenance']['images_seen']):012d}.json"
    path = storage.join(run_dir, FOLDER, name)
    found = manifest.read_if_complete(path, KIND)
    if found is None or "ema" not in found or found.get("weights") != _weights(snapshot):
        return None
    told = found["ema"]
    body = {key: _figure(told[key]) for key in _GAPS if key in told}
    return {**body, "bins": told["bins"], "left_out": found.get("bad", {})}


def _weights(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says of the snapshot that it is of (train/results.py)."""
    return {
        "config": manifest.fingerprint(snapshot["config"]),
        "files": snapshot["files"],
        "raw": snapshot.get("extras", {}).get("raw"),
    }


def _figure(told: dict[str, Any]) -> dict[str, Any]:
    value, error = told["mean"], told["sem"]
    interval = None if value is None or error is None else intervals.around(value, error)
    return intervals.figure(value, interval, told["count"])
