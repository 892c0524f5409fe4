"""What reading images costs in training: from the sources, and from what `prepare` makes of them.

Pictures are cuts of the two photographs that come with scikit-learn, mirrored where they are too
small, as JPEG of quality 95. CPU seconds of one thread, interleaved rounds, medians; read the
ratios.

    python benchmarks/bench_prepare.py [ROUNDS]
"""

import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from imagen import storage
from imagen.config import build
from imagen.data import index, prepared
from imagen.data.images import decode, to_x0
from imagen.data.prepared import Prepared
from imagen.data.tars import write_tar
from preencode import prepare, prepare_shard
from train import data
from train.config import TrainStageConfig
from train.job import Inputs

COUNT = 24
SOURCES = (1024, 256)
CASES = (("base", 1024), ("base", 256), ("sr1", 1024))
NETWORK = {
    "widths": [8],
    "blocks": [1],
    "self_attention": [False],
    "cross_attention": [False],
    "text_dim": 0,
    "cond_dim": 8,
}
TRAIN = {
    **dict.fromkeys(("images", "global_batch", "microbatch", "window"), COUNT),
    **dict.fromkeys(("checkpoint_every", "snapshot_every", "log_every"), COUNT),
    "lanes": 1,
    "lr": 1e-4,
}


def pictures(side: int) -> list[Image.Image]:
    """Return `COUNT` square cuts of photographs, `side` pixels wide."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    found = []
    for i in range(COUNT):
        photo = load_sample_images().images[i % 2]
        wide = np.pad(photo, ((0, 1400), (0, 1400), (0, 0)), mode="reflect")
        y, x = rng.integers(0, 600, 2)
        cut = np.ascontiguousarray(wide[y : y + 1024, x : x + 1024])
        found.append(Image.fromarray(cut).resize((side, side), Image.Resampling.LANCZOS))
    return found


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def project(folder: str, side: int) -> TrainStageConfig:
    """Write and index a tar of JPEGs; return the config of a 64 -> 256 cascade on it."""
    samples = [
        (f"s{i:03d}", {"jpg": encoded(image, "jpeg", quality=95), "txt": b"a photograph"})
        for i, image in enumerate(pictures(side))
    ]
    tar = f"{folder}/data/00000.tar"
    storage.put(tar, write_tar(samples))
    found = index.index_tar(storage.get(tar), tar, 0.0)
    source = {"tar": prepared.relative_tar(f"{folder}/index", tar), "tar_crc32c": None}
    body = index.publish(f"{folder}/index", "00000", found, source)
    prepared.publish(f"{folder}/index", [body], 0.0)
    tree = {
        "name": "bench",
        "out": folder,
        "data": {"heldout": 0.0, "prepare": True},
        "members": {
            "base": {"size": 64, "network": {"kind": "base", **NETWORK}},
            "sr1": {"size": 256, "network": {"kind": "efficient", **NETWORK}},
        },
        "train": {"base": TRAIN, "sr1": TRAIN},
    }
    return build(TrainStageConfig, tree)


def make(config: TrainStageConfig) -> prepare.Result:
    """Prepare the images of a project in this process; `seconds` are of the CPU."""
    job, source = prepare.make_job(config)
    result = prepare.Result(job, 1)
    began = time.process_time()
    for todo in prepare.work_left(job, source.shards):
        result.add(prepare_shard.process(job, todo))
    result.seconds = time.process_time() - began
    prepare.finish(result, source, job.members)
    return result


@dataclass(frozen=True)
class Reader:
    """A member's images from one place."""

    images: Prepared
    samples: data.Samples
    sizes: tuple[tuple[int, int], ...]

    def decode(self) -> None:
        """Read and decode every image, as training does."""
        for row in range(COUNT):
            decode(self.images.image(0, row), self.sizes, 3)

    def batch(self) -> None:
        """Make a whole batch: images, noise, times and all other draws."""
        self.samples.__getitems__(range(COUNT))


def reader(config: TrainStageConfig, member: str, *, ready: bool) -> Reader:
    """Return the images of a member as prepared, or from the source."""
    inputs = Inputs.open(config, member)
    images = inputs.prepared if ready else Prepared.open(config.index)
    samples = Inputs(images, None, inputs.order, {}, inputs.cache).samples(config, member)
    sizes = [config.members[member].shape, config.previous_shape(member)]
    return Reader(images, samples, tuple(size for size in sizes if size is not None))


def rates(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return images per CPU second of each piece of work, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            began = time.process_time()
            function()
            times[name].append(time.process_time() - began)
    return {name: COUNT / statistics.median(seen[1:]) for name, seen in times.items()}


def reading(configs: dict[int, TrainStageConfig], rounds: int) -> None:
    """Print the table of reading."""
    work: dict[str, Callable[[], object]] = {}
    for member, side in CASES:
        for ready in (False, True):
            one = reader(configs[side], member, ready=ready)
            work[f"{member} {side} decode {ready}"] = one.decode
            work[f"{member} {side} batch {ready}"] = one.batch
    found = rates(work, rounds)
    print("| member, from | work | source | prepared | ratio |\n|---|---|---|---|---|")
    for member, side in CASES:
        size = configs[side].members[member].shape[0]
        for what, told in (("decode", "read and decode"), ("batch", "the whole batch")):
            a, b = (found[f"{member} {side} {what} {ready}"] for ready in (False, True))
            print(f"| {member} {size} px, {side} px | {told} | {a:,.0f} | {b:,.0f} | {b / a:.1f} |")


def making(results: dict[int, prepare.Result]) -> None:
    """Print the table of what preparing costs."""
    print("\n| sources | member | kB an image, before | after | kept as they are |")
    print("|---|---|---|---|---|")
    for side, result in results.items():
        for member, body in result.bodies.items():
            before, after = (body["bytes"][k] / COUNT / 1000 for k in ("source", "prepared"))
            print(f"| {side} px | {member} | {before:.1f} | {after:.1f} | {body['kept']} |")
    for side, result in results.items():
        rate = COUNT / result.seconds
        print(f"\nPreparing {side} px for both members: {rate:.0f} source images/CPU-s.")


def formats(rounds: int) -> None:
    """Print the table of file formats: kB, decoding, and what is lost."""
    forms = {
        "PNG": ("png", {}),
        "WebP, lossless, method 0": ("webp", {"lossless": True, "method": 0}),
        "WebP, lossless, method 4": ("webp", {"lossless": True, "method": 4}),
        "JPEG 95, 4:4:4": ("jpeg", {"quality": 95, "subsampling": 0}),
        "raw (BMP)": ("bmp", {}),
    }
    print("\n| pixels | format | kB | encoded/CPU-s | decoded/CPU-s | PSNR, dB |")
    print("|---|---|---|---|---|---|")
    for size, mode in ((64, "RGB"), (256, "RGB"), (64, "L"), (256, "L")):
        scaled = [p.resize((size, size), Image.Resampling.LANCZOS) for p in pictures(1024)]
        images = [image.convert(mode) for image in scaled]
        files = {n: [encoded(i, f, **o) for i in images] for n, (f, o) in forms.items()}
        read = partial(_read, size=size, channels=len(mode))
        write = {f"+{n}": partial(_write, images, f, o) for n, (f, o) in forms.items()}
        found = rates(write | {name: partial(read, made) for name, made in files.items()}, rounds)
        for name, made in files.items():
            kilobytes = statistics.mean(map(len, made)) / 1000
            told = f"{kilobytes:.1f} | {found['+' + name]:,.0f} | {found[name]:,.0f}"
            print(f"| {size} px {mode} | {name} | {told} | {psnr(read(made), images)} |")


def _write(images: list[Image.Image], form: str, options: dict) -> None:
    for image in images:
        encoded(image, form, **options)


def _read(files: list[bytes], size: int, channels: int) -> list[np.ndarray]:
    return [decode(file, (size,), channels)[0] for file in files]


def psnr(found: list[np.ndarray], wanted: list[Image.Image]) -> str:
    """Return the peak signal-to-noise ratio in dB, `none lost` for the same pixels."""
    pairs = [(a.astype(float), np.asarray(b, float)) for a, b in zip(found, wanted, strict=True)]
    errors = [np.mean((a.transpose(1, 2, 0).reshape(b.shape) - b) ** 2) for a, b in pairs]
    return f"{10 * np.log10(255**2 / np.mean(errors)):.1f}" if any(errors) else "none lost"


def lowres(config: TrainStageConfig) -> None:
    """Print how far the low-resolution picture of sr1 moves when it is made of prepared images."""
    both = [reader(config, "sr1", ready=ready) for ready in (False, True)]
    planes = [[decode(r.images.image(0, i), r.sizes, 3)[1] for i in range(COUNT)] for r in both]
    wanted = [Image.fromarray(plane.transpose(1, 2, 0)) for plane in planes[0]]
    apart = [torch.from_numpy(np.stack(p)) for p in planes]
    difference = (to_x0(apart[0]) - to_x0(apart[1])).abs().max()
    print(
        f"\nLow-resolution pictures of sr1 (64 px) from prepared 256 px and from 1024 px: "
        f"{psnr(planes[1], wanted)} dB, at most {float(difference) * 127.5:.0f} levels."
    )


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    data.CACHE_BYTES = 0  # a large data set is decoded each time
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory() as folder:
        configs = {side: project(f"{folder}/{side}", side) for side in SOURCES}
        results = {side: make(config) for side, config in configs.items()}
        print(f"{platform.processor() or platform.machine()}, {rounds} rounds, images/CPU-s\n")
        reading(configs, rounds)
        making(results)
        lowres(configs[1024])
    formats(max(3, rounds // 3))


if __name__ == "__main__":
    main()
