"""What looking at a data set of 100,000 shards costs the driver: seconds and memory.

A project is made whose tars, indexes and embeddings are all there by name and size, but have no
content (sparse files take no room; 1.1 million of them take minutes to make). Only the first tar
is real, and a tenth of the others' size. Then, each in a process of its own: a dry run with nothing
done, one with all done, and the two manifests that end a run.

    python benchmarks/bench_plan.py [SHARDS]               table
    python benchmarks/bench_plan.py --measure WHAT FOLDER  one line of it, as JSON
"""

import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from imagen import manifest, storage
from imagen.config import build
from imagen.data import index, prepared
from imagen.data.tars import Tar, write_tar
from imagen.project import absolute
from preencode import driver, estimate
from preencode.config import PreencodeConfig

ROWS, CAPTIONS, TOKENS, DIM = 10_000, 9_500, 190_000, 4096


def config_of(folder: str) -> PreencodeConfig:
    """Return the config of the project."""
    tree = {"name": "plan", "out": f"{folder}/run", "data": {"tars": f"{folder}/tars"}}
    return absolute(build(PreencodeConfig, tree))


def sparse(path: str, size: int) -> None:
    """Make a file of a size and no content."""
    with open(path, "wb") as file:
        file.truncate(size)


def make_tars(folder: Path, shards: int) -> None:
    """Make one real tar and many that only look like one."""
    image = io.BytesIO()
    Image.effect_noise((256, 256), 60).save(image, "jpeg")
    draw = np.random.RandomState(0)
    samples = []
    for i in range(ROWS // 10):
        words = draw.randint(0, 5000, max(1, int(draw.lognormal(2.6, 0.7))))
        caption = " ".join(f"w{word}" for word in words).encode()
        samples.append((f"{i:06d}", {"jpg": image.getvalue(), "txt": caption}))
    folder.mkdir(parents=True)
    tar = write_tar(samples)
    (folder / "00000000.tar").write_bytes(tar)
    for i in range(1, shards):
        sparse(str(folder / f"{i:08d}.tar"), 10 * len(tar))


def make_manifests(config: PreencodeConfig) -> None:
    """Make the files of a finished run: manifests of the real shape, data files without content."""
    job = driver.make_job(config)
    os.makedirs(job.index_dir)
    os.makedirs(job.embedding_dir)
    for file, entry in storage.scan(config.tars).items():
        tar = Tar(storage.join(config.tars, file), entry.version)
        _shard(job.index_dir, "index", tar.name, _index(config, job.heldout, tar))
        _shard(job.embedding_dir, "embeddings", tar.name, _embeddings(job.fingerprint, tar.name))


def _shard(folder: str, kind: str, name: str, body: dict) -> None:
    for file, entry in body["files"].items():
        sparse(f"{folder}/{file}", entry["bytes"])
    text = json.dumps({"format": f"imagen/{kind}/1", **body}, indent=1)
    Path(index.manifest_path(folder, name)).write_text(text)


def _files(name: str, sizes: dict[str, int]) -> dict[str, dict]:
    return {f"{name}.{part}": {"bytes": n, "crc32c": f"{n:08x}"} for part, n in sizes.items()}


def _index(config: PreencodeConfig, heldout: float, tar: Tar) -> dict:
    sizes = {"index.npy": 34 * ROWS, "keys.npy": 12 * ROWS, "quarantine.jsonl": 0}
    return {
        "shard": tar.name,
        "version": index.VERSION,
        "tar": prepared.relative_tar(config.index, tar.path),
        "tar_version": tar.version,
        "tar_crc32c": None,
        "heldout_share": heldout,
        "tar_bytes": int(tar.version.partition("-")[0]),
        "rows": ROWS,
        "train": ROWS - 500,
        "heldout": 500,
        "plain": True,
        "digest": manifest.fingerprint(tar.name) * 2,
        "images_crc32c": "0" * 8,
        "sides": {str(side): 10 for side in range(200, 300)},
        "empty": 3,
        "bad": {"bad_image": 7, "no_caption": 2},
        "files": _files(tar.name, sizes),
    }


def _embeddings(encoder: str, name: str) -> dict:
    sizes = {
        "tokens.npy": 2 * TOKENS * DIM,
        "offsets.npy": 8 * CAPTIONS,
        "ids.npy": 4 * TOKENS,
        "slots.npy": 4 * ROWS,
        "keys.npy": 12 * ROWS,
    }
    return {
        "shard": name,
        "rows": ROWS,
        "captions": CAPTIONS,
        "tokens": TOKENS,
        "dim": DIM,
        "dtype": "float16",
        "encoder": encoder,
        "digest": manifest.fingerprint(name) * 2,
        "truncated": 20,
        "lost_tokens": 300,
        "empty": 3,
        "files": _files(name, sizes),
    }


def measure(what: str, folder: str) -> dict[str, object]:
    """Do one thing; return what it took."""
    config = config_of(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    told: list[str] = []
    if what == "finish":
        job, tars = driver.make_job(config), driver.importing.list_tars(config)
        driver.finish(driver.Result(job, 0, len(tars)), tars)
    else:
        told = list(estimate.plan_lines(config, measure=what == "measure"))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "start_bytes": before * 1024,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "told": told,
    }


def run(what: str, folder: str) -> dict:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, "--measure", what, folder]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main(shards: int) -> None:
    """Print the table."""
    folder = tempfile.mkdtemp(prefix="imagen-plan-")
    rows, told = [], []
    try:
        make_tars(Path(folder) / "tars", shards)
        rows.append(("dry run, nothing done", run("plan", folder)))
        rows.append(("the same with --measure", found := run("measure", folder)))
        told = found["told"]
        make_manifests(config_of(folder))
        rows.append(("dry run, all done", run("plan", folder)))
        rows.append(("both set manifests", run("finish", folder)))
    finally:
        shutil.rmtree(folder)
    print(
        f"{shards:,} shards; {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )
    print()
    print("| what | wall s | CPU s | peak MB | of it at start |")
    print("|---|---|---|---|---|")
    for name, found in rows:
        print(
            f"| {name} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} | "
            f"{found['peak_bytes'] / 1e6:.0f} | {found['start_bytes'] / 1e6:.0f} |"
        )
    print("\nWith --measure it says:\n")
    print("\n".join(f"    {line}" for line in told))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
