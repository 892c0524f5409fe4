"""What validation leaves in a run directory, and which snapshots still wait for it.

```
<run>/validation/<images seen>.png             what the snapshot draws (train.grid)
<run>/validation/<images seen>.json            its losses (train.validate); written last
<run>/validation/<images seen>.failed.json     why it could not be validated, how often
<run>/validation.jsonl                         one line for each result, written by the driver
<run>/best.json                                the snapshot with the lowest loss
```
A result says of which weights it is and by which settings; where either has changed since, it does
not count, and is made again.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imagen import manifest, snapshot, storage
from imagen.errors import ImagenError
from train import rundir, validation
from train.config import TrainStageConfig

FOLDER, KIND = "validation", "validation"
LINES = "validation.jsonl"
BEST, BEST_KIND = "best.json", "best"
TRIES = 3
"""Launches that try a snapshot whose validation fails."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one run, by today's settings."""

    run_dir: str
    settings: dict[str, Any]
    """What decides a result beside the snapshot."""

    @classmethod
    def of(cls, config: TrainStageConfig, member: str, identity: Mapping[str, Any]) -> "Results":
        """Return the results of a member's run on the data that its identity names."""
        train = config.of(member)
        settings = {
            "version": validation.VERSION,
            "data": identity["data fingerprint"],
            "encoder": identity["encoder fingerprint"],
            "seed": config.seed,
            "samples": train.validate,
            "crop_px": train.crop_px,
            "grid": train.grid,
        }
        return cls(config.run_dir(member), settings)

    def path(self, name: str, kind: str) -> str:
        """Return where a file of the result of snapshot `name` is."""
        return storage.join(self.run_dir, FOLDER, f"{name}.{kind}")

    def snapshots(self) -> list[str]:
        """Return the names of the snapshots there are, oldest first."""
        return storage.listdir(storage.join(self.run_dir, rundir.SNAPSHOTS))

    def snapshot(self, name: str) -> str:
        """Return the folder of a snapshot."""
        return storage.join(self.run_dir, rundir.SNAPSHOTS, name)

    def body(self, name: str) -> dict[str, Any] | None:
        """Return the manifest of a snapshot if it is complete."""
        path = storage.join(self.snapshot(name), snapshot.MANIFEST)
        return manifest.read_if_complete(path, snapshot.KIND)

    @staticmethod
    def weights(body: dict[str, Any]) -> dict[str, Any]:
        """Return what tells a snapshot from others: weights, and how it is sampled."""
        raw = body.get("extras", {}).get("raw")
        config = manifest.fingerprint(body["config"])
        return {"config": config, "files": body["files"], "raw": raw}

    def of_snapshot(self, name: str) -> dict[str, Any] | None:
        """Return the result of a snapshot as it is now, by today's settings; None: it has none."""
        found = manifest.read_if_complete(self.path(name, "json"), KIND)
        body = self.body(name)
        if found is None or body is None or found["settings"] != self.settings:
            return None
        return found if found["weights"] == self.weights(body) else None

    def publish(self, name: str, body: dict[str, Any], losses: Any, png: bytes | None) -> None:
        """Write the result of a snapshot whose manifest is `body`; the same one has one text."""
        files = {} if png is None else {f"{name}.png": png}
        folder = storage.join(self.run_dir, FOLDER)
        told = {
            "images_seen": body["provenance"]["images_seen"],
            "snapshot": storage.join(rundir.SNAPSHOTS, name),
            "settings": self.settings,
            "weights": self.weights(body),
            **losses,
            "files": manifest.put_files(folder, files),
        }
        manifest.write(self.path(name, "json"), KIND, told)
        storage.delete(self.path(name, "failed.json"))

    def failures(self, name: str) -> int:
        """Return how many launches tried a snapshot as it is now, by today's settings, in vain."""
        path, body, note = self.path(name, "failed.json"), self.body(name), {}
        if body is not None and storage.exists(path):
            with contextlib.suppress(ValueError):  # damaged: it is counted anew
                note = json.loads(storage.get(path))
        same = body is not None and note.get("weights") == self.weights(body)
        return note["tries"] if same and note.get("settings") == self.settings else 0

    def fail(self, name: str, reason: str) -> int:
        """Note a failure of a snapshot that is there; return how many there were."""
        tries, body = self.failures(name) + 1, self.body(name)
        note: dict[str, Any] = {"tries": tries, "reason": reason, "settings": self.settings}
        note["weights"] = None if body is None else self.weights(body)
        storage.put(self.path(name, "failed.json"), json.dumps(note, indent=1).encode() + b"\n")
        return tries

    def best(self) -> str | None:
        """Return the name of the snapshot that is the best so far, None when there is none."""
        named = (_best(self.run_dir) or {}).get("snapshot")
        return None if named is None else storage.name(named)

    def _waits(self, name: str) -> bool:
        return self.body(name) is not None and self.failures(name) < TRIES

    def note_best(self, results: Iterable[dict[str, Any]]) -> None:
        """Write which of the snapshots that are still there has the lowest loss.

        The best so far stays until it is judged by today's settings, like the others.
        """
        judged = [(loss, r) for r in results if (loss := loss_of(r)) is not None]
        before = self.best()
        names = {storage.name(result["snapshot"]) for _, result in judged}
        if before is not None and before not in names and self._waits(before):
            return
        for loss, best in sorted(judged, key=lambda pair: pair[0]):
            if self.body(storage.name(best["snapshot"])) is None:
                continue  # deleted: only the newest and the best are kept
            facts = {key: best[key] for key in ("snapshot", "images_seen")} | {"loss": loss}
            if _best(self.run_dir) != facts:
                manifest.write(storage.join(self.run_dir, BEST), BEST_KIND, facts)
            return


def _best(run_dir: str) -> dict[str, Any] | None:
    path = storage.join(run_dir, BEST)
    try:
        body = manifest.read(path, BEST_KIND) if storage.exists(path) else {}
    except ImagenError:
        return None  # damaged: it is written again
    return {key: body.get(key) for key in ("snapshot", "images_seen", "loss")}


def loss_of(result: dict[str, Any]) -> float | None:
    """Return the loss by which snapshots are compared: of the averaged weights, with captions."""
    return result["ema"]["loss"]["mean"] if "ema" in result else None


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """Return the curves of a result: `ema`, `raw`, `ema_caption_gap`, `ema_logsnr_-10_-7.5` …"""
    curves: dict[str, float | None] = {}
    for weights in ("ema", "raw"):
        told = result.get(weights, {})
        for key, name in (
            ("loss", weights),
            ("without_captions", f"{weights}_without_captions"),
            ("caption_gap", f"{weights}_caption_gap"),
            ("shuffled_captions", f"{weights}_shuffled_captions"),
            ("shuffle_gap", f"{weights}_shuffle_gap"),
        ):
            curves[name] = told.get(key, {}).get("mean")
        for part in told.get("bins", []):
            curves[f"{weights}_logsnr_{_span(*part['logsnr'])}"] = part["mean"]
    return {name: value for name, value in curves.items() if value is not None}


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return f"below_{high:g}"
    return f"above_{low:g}" if high is None else f"{low:g}_{high:g}"
