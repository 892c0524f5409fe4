"""A cascade: members assembled from snapshots, sampled from text to the last member's images.

```
<folder>/cascade.json             manifest, written last: members, text encoder, fingerprint
<folder>/<member>-<fingerprint>/  a copy of the member's snapshot
```
Same seed, same picture: each image has its own seed and its own counter-based noise, so a picture
does not depend on what else is in the batch.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from imagen import manifest, snapshot, storage
from imagen.config import build as build_config
from imagen.config import to_tree
from imagen.data.randomness import Purpose, normals
from imagen.diffusion.samplers import SAMPLERS, uniform_times
from imagen.errors import CheckpointError, ConfigError
from imagen.member import MemberConfig, Text, condition_lowres, denoiser
from imagen.network.unet import build
from imagen.text.batch import batch as text_batch
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, load_encoder

MANIFEST = "cascade.json"
MEMBER_FOLDER = re.compile(r"(base|sr\d+)-[0-9a-f]{16}")
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Member:
    """One loaded member: its configuration, network and where it came from."""

    config: MemberConfig
    net: nn.Module
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What a caller may set when sampling; None keeps each member's own default."""

    guidance_scale: float | None = None
    steps: int | None = None
    sampler: str | None = None

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ConfigError(
                f"sampler {self.sampler!r} is unknown", f"samplers: {', '.join(SAMPLERS)}"
            )
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ConfigError(f"guidance_scale {self.guidance_scale} is not a finite number")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps {self.steps} is less than 1")


def assemble(
    folder: str, snapshots: dict[str, str], text: TextConfig, encoder_fingerprint: str
) -> str:
    """Copy snapshots (member -> folder) into a cascade directory; return its fingerprint.

    Raises CheckpointError when a snapshot is damaged, unfinished, or was trained with another
    encoder. Assembling the same snapshots again writes nothing.
    """
    members, copies = {}, {}
    for name, source in snapshots.items():
        body = manifest.read(storage.join(source, snapshot.MANIFEST), "snapshot", CheckpointError)
        trained_with = body["provenance"].get("encoder_fingerprint")
        if trained_with != encoder_fingerprint:
            raise CheckpointError(
                f"snapshot `{source}` was trained with encoder {trained_with}, not with "
                f"{encoder_fingerprint} ({text.encoder})",
                f"train {name} again, or set text.encoder to what it was trained with",
            )
        members[name] = {"folder": f"{name}-{manifest.fingerprint(body)}", **body}
        copies[name] = source
    body = {"members": members, "text": to_tree(text), "encoder_fingerprint": encoder_fingerprint}
    fingerprint = manifest.fingerprint(body)
    folders = {name: storage.join(folder, entry["folder"]) for name, entry in members.items()}
    if _fingerprint_of(folder) == fingerprint and all(map(_is_whole, folders.values())):
        return fingerprint
    for name, source in copies.items():
        _copy_snapshot(source, folders[name], members[name])
    manifest.write(storage.join(folder, MANIFEST), "cascade", {"fingerprint": fingerprint, **body})
    _delete_others(folder, {entry["folder"] for entry in members.values()})
    return fingerprint


def _is_whole(member_folder: str) -> bool:
    path = storage.join(member_folder, snapshot.MANIFEST)
    return manifest.read_if_complete(path, snapshot.KIND) is not None


def _delete_others(folder: str, listed: set[str]) -> None:
    """Delete the members that an earlier manifest listed, each with its manifest first."""
    for name in storage.listdir(folder):
        if name in listed or not MEMBER_FOLDER.fullmatch(name):
            continue
        storage.delete(storage.join(folder, name, snapshot.MANIFEST))
        for file in storage.listdir(storage.join(folder, name)):
            storage.delete(storage.join(folder, name, file))
        storage.delete_folder(storage.join(folder, name))


def _fingerprint_of(folder: str) -> str | None:
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return None
    return manifest.read(path, "cascade", CheckpointError)["fingerprint"]


def _copy_snapshot(source: str, target: str, body: dict[str, Any]) -> None:
    for file, entry in body["files"].items():
        path = storage.join(source, file)
        data = manifest.check_file(path, storage.get(path), entry, CheckpointError)
        storage.put(storage.join(target, file), data)
    path = storage.join(source, snapshot.MANIFEST)
    storage.put(storage.join(target, snapshot.MANIFEST), storage.get(path))


class Cascade:
    """Members in order and the text encoder they were trained with."""

    def __init__(self, members: dict[str, Member], encoder: TextEncoder, fingerprint: str) -> None:
        self.members = members
        self.encoder = encoder
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: str, device: str = "cpu", encoder: str | None = None) -> "Cascade":
        """Load a cascade directory. Raises CheckpointError, or ConfigError for the encoder.

        `encoder`: where the text encoder lies on this machine, if not where it was trained; it has
        to be the same one, as its fingerprint tells.
        """
        path = storage.join(folder, MANIFEST)
        if not storage.exists(path):
            raise CheckpointError(
                f"`{folder}` is no cascade: it has no {MANIFEST}",
                "`python -m eval CONFIG` assembles one from trained members",
            )
        body = manifest.read(path, "cascade", CheckpointError)
        text = build_config(TextConfig, body["text"], path)
        loaded = load_encoder(text if encoder is None else replace(text, encoder=encoder), device)
        if loaded.fingerprint != body["encoder_fingerprint"]:
            raise CheckpointError(
                f"encoder {loaded.text.encoder} has fingerprint {loaded.fingerprint}, the "
                f"cascade `{folder}` was trained with {body['encoder_fingerprint']}",
                "use the revision of the encoder that the embeddings were made with",
            )
        members = {
            name: _load_member(storage.join(folder, entry["folder"]), device)
            for name, entry in body["members"].items()
        }
        return cls(members, loaded, body["fingerprint"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What the cascade was made of: fingerprint, encoder and each member's provenance."""
        return {
            "fingerprint": self.fingerprint,
            "encoder": to_tree(self.encoder.text),
            "encoder_fingerprint": self.encoder.fingerprint,
            "members": {name: member.provenance for name, member in self.members.items()},
        }

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        options: SampleOptions | None = None,
        on_step: OnStep | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return each member's images, (b, c, h, w) float32 in [-1, 1], one for each prompt.

        `seeds`: one in [0, 2^32) for each prompt; image i depends on prompt i and seed i only.
        `on_step(member, step, steps)` is called after each step, from 1 to steps.
        """
        if len(prompts) != len(seeds) or not prompts:
            raise ConfigError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one for each")
        if min(seeds) < 0 or max(seeds) >= 2**32:
            raise ConfigError(f"a seed of {list(seeds)} is not in [0, 2^32)")
        device = next(next(iter(self.members.values())).net.parameters()).device
        emb, mask = text_batch(self.encoder.encode(prompts))
        text = Text(emb.to(device), mask.to(device))
        images: dict[str, torch.Tensor] = {}
        lowres = None
        for index, name in enumerate(self.members):
            tell = _no_step if on_step is None else on_step
            lowres = self._sample_member(index, text, seeds, lowres, options, tell)
            images[name] = lowres
        return images

    def _sample_member(
        self,
        index: int,
        text: Text,
        seeds: Sequence[int],
        lowres: torch.Tensor | None,
        options: SampleOptions | None,
        on_step: OnStep,
    ) -> torch.Tensor:
        name = list(self.members)[index]
        config, net = self.members[name].config, self.members[name].net
        chosen, defaults = options or SampleOptions(), config.sampling
        scale = defaults.guidance_scale if chosen.guidance_scale is None else chosen.guidance_scale
        steps = chosen.steps or defaults.steps
        shape = (config.network.channels, config.size, config.size)
        up = aug = None
        if lowres is not None:
            level = torch.full((len(seeds),), defaults.aug_level, dtype=torch.float64)
            aug_eps = _noise(seeds, Purpose.SAMPLE_AUG + index, lowres.shape[1:]).to(lowres.device)
            up, aug = condition_lowres(lowres, level.to(lowres.device), aug_eps, config.size)
        denoise = denoiser(net, config, text, scale, up, aug)
        sampler = SAMPLERS[chosen.sampler or defaults.sampler]
        x = _noise(seeds, Purpose.SAMPLE + index, shape).to(text.emb.device)
        x0 = sampler(denoise, x, uniform_times(steps), lambda i: on_step(name, i + 1, steps))
        return x0.clamp(-1, 1)


def _no_step(member: str, step: int, steps: int) -> None:
    pass


def _load_member(folder: str, device: str) -> Member:
    loaded = snapshot.load(folder)
    net = build(loaded.config.network)
    try:
        net.load_state_dict(loaded.state_dict)
    except RuntimeError as err:  # torch's list of missing and unexpected keys or shapes
        raise CheckpointError(
            f"the weights in `{folder}` do not fit the network its config describes: {err}",
            "they were made by another version of the code; train the member again",
        ) from err
    return Member(loaded.config, net.to(device).eval(), loaded.provenance)


def _noise(seeds: Sequence[int], purpose: int, shape: Sequence[int]) -> torch.Tensor:
    """Return standard normal noise (b, *shape), each row a function of its own seed."""
    first, count = np.zeros(1, dtype=np.int64), int(np.prod(shape))
    rows = [normals(seed, purpose, first, count)[0] for seed in seeds]
    return torch.from_numpy(np.stack(rows)).reshape(len(seeds), *shape)
