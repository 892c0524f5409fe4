"""Finished evaluations of a tiny project: really sampled, their numbers written down."""

import json
import types

import numpy as np
import pytest
import torch

from eval import film, prompts, sampling
from eval.report import images
from eval.score import Sampled
from imagen import assembly, manifest, picture, storage
from imagen.cascade import Cascade
from imagen.config import dump_yaml, to_tree
from imagen.data.images import to_uint8
from imagen.text.encoder import encoder_fingerprint


def share(value, n=20):
    return {"value": value, "interval": [max(0, value - 0.1), min(1, value + 0.1)], "n": n}


def plain(value, spread=0.1):
    return {"value": value, "interval": [value - spread, value + spread], "n": 20}


def judged(accuracy):
    """What a judge of digits says."""
    return {
        "digit_accuracy": share(accuracy),
        "members": {"base": share(accuracy / 2), "sr1": share(accuracy)},
        "per_digit": {str(d): share(accuracy) | {"instead": {"1": 3}} for d in range(10)},
        "per_phrasing": {"the digit {numeral}": share(accuracy)},
        "text_use": {"right_prompt": share(accuracy), "chance": plain(0.1, 0.02)},
        "judge": {"gate": 0.5, "training_images": 1700, "heldout_accuracy": share(0.99, 171)},
    }


def memorisation():
    told = {"n": 20, "least": 0.1, "p05": 0.1, "median": 0.2, "p95": 0.3}
    return {
        "measure": "rms",
        "samples": told,
        "heldout": told,
        "ratio_of_medians": 1.07,
        "nearer_than_heldout": share(0.42),
        "distinct_nearest": 2,
        "pairs": [{"image": 1, "distance": 0.1}, {"image": 0, "distance": 0.2}],
    }


SWEEPS = {
    "guidance": [
        {"value": w, "accuracy": share(a), "fd": plain(d)}
        for w, a, d in ((1.0, 0.5, 2.0), (4.0, 0.9, 1.0), (20.0, 0.6, 5.0))
    ],
    "samplers": [{"value": s, "accuracy": share(0.5)} for s in ("ddim", "dpmpp_2m")],
}


_SAMPLED = {}


def sample(config, snapshots):
    """Sample once what many tests look at: the same snapshots by the same settings."""
    body = assembly.describe(snapshots, config.text, encoder_fingerprint(config.text))
    key = manifest.fingerprint([body, to_tree(config.eval)])
    if key not in _SAMPLED:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        _SAMPLED[key] = _sample(config, Cascade.of_snapshots(snapshots, config.text))
        torch.set_num_threads(threads)
    return _SAMPLED[key]


def _sample(config, cascade):
    items, options, made = prompts.items(config.eval), config.eval.options, {}
    for start in range(0, len(items), sampling.CHUNK_IMAGES):
        part = items[start : start + sampling.CHUNK_IMAGES]
        drawn = cascade.sample([i.prompt for i in part], [i.seed for i in part], options)
        for name, x in drawn.items():
            made.setdefault(name, []).extend(to_uint8(x).cpu().numpy().transpose(0, 2, 3, 1))
    shown = film.draw(cascade, film.chosen(items), options)
    return Sampled(items, made), cascade.fingerprint, shown


def chunk_files(config, sampled, fingerprint):
    import safetensors.numpy

    files = {}
    for chunk in sampling.chunks("samples", sampled.items, fingerprint, config.eval.options):
        start = int(chunk.path[-18:-12])
        part = {
            name: np.ascontiguousarray(
                np.stack(rows[start : start + len(chunk.items)]).transpose(0, 3, 1, 2)
            )
            for name, rows in sampled.members.items()
        }
        files[chunk.path] = safetensors.numpy.save(part)
    return files


def lines(sampled, right):
    return "".join(
        json.dumps(
            {
                "prompt": item.prompt,
                "seed": item.seed,
                "right": i < right,
                "seen": None,
                "nearest_distance": 0.1 + 0.001 * i,
            }
        )
        + "\n"
        for i, item in enumerate(sampled.items)
    ).encode()


def head(config, fingerprint, seen):
    return {
        "name": config.name,
        "cascade": fingerprint,
        "encoder": {"name": "tiny-t5", "fingerprint": encoder_fingerprint(config.text)},
        "data": "d" * 16,
        "images_seen": seen,
        "provenance": {name: {"code_version": "1.2", "images_seen": n} for name, n in seen.items()},
        "environment": {"torch": "2"},
        "cost": {"seconds": {"sample": 7.25}},
    }


def finish(config, images_seen, accuracy=0.5, sweeps=None, **metrics):
    """Leave a finished evaluation as `python -m eval` does; return its folder.

    `images_seen`: member -> images; each snapshot is where `tiny.write_snapshot` put it.
    """
    places = {n: f"{config.run_dir(n)}/snapshots/{s:012d}" for n, s in images_seen.items()}
    sampled, fingerprint, shown = sample(config, places)
    final = sampled.final
    pairs = [images.Pair(i, final[i], final[0]) for i in (1, 0)]
    body = head(config, fingerprint, images_seen) | {"memorisation": memorisation()}
    if accuracy is not None:
        body |= judged(accuracy)
    if sweeps:
        body["sweeps"] = sweeps
    files = {
        "grid.png": picture.png(images.grid(sampled, config.eval.grid)),
        "nearest.png": picture.png(images.nearest(pairs)),
        "denoising.webp": shown,
        "images.jsonl": lines(sampled, round((accuracy or 0) * len(final))),
        "metrics.json": json.dumps(body | metrics).encode(),
        "config.yaml": dump_yaml(config).encode(),
        **chunk_files(config, sampled, fingerprint),
    }
    for name, points in (sweeps or {}).items():
        columns, labels = [final] * len(points), [str(p["value"]) for p in points]
        drawn = images.sweep_grid(sampled.items, columns, labels, 2)
        files[f"sweep-{name}.png"] = picture.png(drawn)
    own = manifest.fingerprint([fingerprint, dump_yaml(config)])
    folder = f"{config.evals}/{max(images_seen.values()):012d}-{own[:8]}"
    entries = manifest.put_files(folder, files)
    body = {
        "fingerprint": own,
        "cascade": fingerprint,
        "images_seen": images_seen,
        "images": len(final),
        "complete_cascade": len(images_seen) == len(config.members),
        "files": entries,
    }
    manifest.write(f"{folder}/manifest.json", "eval", body)
    return folder


def alter(folder, **keys):
    """Change what the manifest of a finished evaluation says."""
    path = f"{folder}/manifest.json"
    body = {k: v for k, v in manifest.read(path, "eval").items() if k != "format"}
    manifest.write(path, "eval", body | keys)


def damage(folder, name):
    """Change a byte of a file."""
    data = bytearray(storage.get(f"{folder}/{name}"))
    data[-1] ^= 1
    storage.put(f"{folder}/{name}", bytes(data))


def validate(config, member, images_seen, loss):
    """Leave a validation result as training does."""

    def mean(value):
        return {"mean": value, "sem": 0.01, "count": 100}

    bins = [
        {"logsnr": [low, high], **mean(loss * scale)}
        for low, high, scale in ((None, -10.0, 0.5), (-10.0, 0.0, 1.0), (0.0, None, 2.0))
    ]
    ema = {
        "loss": mean(loss),
        "without_captions": mean(loss + 0.1),
        "shuffled_captions": mean(loss + 0.2),
        "bins": bins,
    }
    body = {"images_seen": images_seen, "ema": ema, "raw": {"loss": mean(loss + 0.05)}}
    path = f"{config.run_dir(member)}/validation/{images_seen:012d}.json"
    manifest.write(path, "validation", body)


@pytest.fixture(scope="session")
def leave():
    """What tests of this folder share."""
    return types.SimpleNamespace(
        finish=finish, validate=validate, judged=judged, share=share, plain=plain, SWEEPS=SWEEPS,
        alter=alter, damage=damage,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """A project with three checkpoints, evaluated, one of them with sweeps; nobody changes it."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.make_config(folder)
    for n, accuracy in ((640, 0.2), (1280, 0.6), (1920, 0.9)):
        for member in config.members:
            tiny.write_snapshot(config, member, n, seed=n)
            validate(config, member, n, 500 / n)
        seen = dict.fromkeys(config.members, n)
        finish(config, seen, accuracy, sweeps=SWEEPS if n == 1920 else None)
    note = {"tries": 2, "reason": "the <disk> was full", "time": 1_700_000_000.0}
    storage.put(f"{config.evals}/failed/000000002560-abc.json", json.dumps(note).encode())
    assembly.assemble(
        config.cascade,
        {name: f"{config.run_dir(name)}/snapshots/{1920:012d}" for name in config.members},
        config.text,
        encoder_fingerprint(config.text),
    )
    return config
