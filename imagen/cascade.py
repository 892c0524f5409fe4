"""A cascade of members and their text encoder, sampled from text to the last member's images.

Same seed, same picture: each image has its own seed and its own counter-based noise, so a picture
does not depend on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from imagen import assembly, editing, manifest, picture, provenance, sampling, snapshot, storage
from imagen.assembly import MANIFEST, assemble
from imagen.batch import Given, Text
from imagen.config import build as build_config
from imagen.config import to_tree
from imagen.data.images import to_uint8
from imagen.editing import Edit
from imagen.errors import CheckpointError, ConfigError
from imagen.member import MemberConfig
from imagen.network.unet import build
from imagen.request import Request, plan
from imagen.sampling import Extras, SampleOptions
from imagen.text.batch import batch as text_batch
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, load_encoder

__all__ = ["MANIFEST", "Cascade", "Edit", "Extras", "Member", "SampleOptions", "assemble"]

OnStep = Callable[[str, int, int], None]
OnDenoised = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Member:
    """One loaded member: its configuration, network and where it came from."""

    config: MemberConfig
    net: nn.Module
    provenance: dict[str, Any]


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
        folders = {n: storage.join(folder, e["folder"]) for n, e in body["members"].items()}
        return cls(_load_members(folder, folders, loaded, device), loaded, body["fingerprint"])

    @classmethod
    def of_snapshots(
        cls, snapshots: dict[str, str], text: TextConfig, device: str = "cpu"
    ) -> "Cascade":
        """Load a cascade from the snapshot folders of its members, where they lie.

        It is the one that assembling them would give. Raises CheckpointError or ConfigError.
        """
        loaded = load_encoder(text, device)
        body = assembly.describe(snapshots, text, loaded.fingerprint)
        where = " and ".join(snapshots.values())
        members = _load_members(where, snapshots, loaded, device)
        return cls(members, loaded, manifest.fingerprint(body))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the cascade was made of: fingerprint, encoder and each member's provenance."""
        return {
            "fingerprint": self.fingerprint,
            "encoder": to_tree(self.encoder.text),
            "encoder_fingerprint": self.encoder.fingerprint,
            "members": {name: member.provenance for name, member in self.members.items()},
        }

    @property
    def configs(self) -> dict[str, MemberConfig]:
        """Configuration of each member, in order."""
        return {name: member.config for name, member in self.members.items()}

    def draw(
        self,
        prompt: str,
        seed: int = 0,
        options: SampleOptions | None = None,
        edit: Edit | None = None,
        extras: Extras | None = None,
    ) -> Image:
        """Return the picture that the last member draws of a prompt, as `sample` does."""
        channels = next(iter(self.configs.values())).network.channels
        if channels not in (1, 3, 4):
            raise ConfigError(
                f"the cascade draws {channels} channels, pictures have 1, 3 or 4",
                "take the tensors: Cascade.sample()",
            )
        images = self.sample([prompt], [seed], options, edit=edit, extras=extras)
        last = list(images.values())[-1]
        return picture.exact(to_uint8(last)[0].permute(1, 2, 0).cpu().numpy())

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        options: SampleOptions | None = None,
        on_step: OnStep | None = None,
        edit: Edit | None = None,
        extras: Extras | None = None,
        on_denoised: OnDenoised | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return each member's images (b, c, h, w) in [-1, 1], of those that ran, in order.

        One prompt ("" is no text) and one seed in [0, 2^32) an image. `edit`: a picture to start
        from. `on_step(member, step, steps)` is called after each step, `on_denoised(member, x0)`
        with each clean image that is predicted on the way. Raises ConfigError for what these
        members cannot do.
        """
        options = SampleOptions() if options is None else options
        extras = Extras() if extras is None else extras
        request = Request(prompts, seeds, options, edit, extras)
        provenances = {name: member.provenance for name, member in self.members.items()}
        running = plan(request, self.configs, provenances)
        text, negative = self._texts(request, running)
        images: dict[str, torch.Tensor] = {}
        lowres = self._given_lowres(request)
        for name, config in running.items():
            given = _given(config, text, negative, request.extras, self._device)
            show = None if on_denoised is None else partial(on_denoised, name)
            lowres = self._sample_member(name, config, given, request, lowres, on_step, show)
            images[name] = lowres
        return images

    @property
    def _device(self) -> torch.device:
        return next(next(iter(self.members.values())).net.parameters()).device

    def _texts(
        self, request: Request, running: dict[str, MemberConfig]
    ) -> tuple[Text | None, Text | None]:
        """Return the prompts and the negative prompt as text, where a member takes text."""
        if not any(config.network.text_dim for config in running.values()):
            return None, None

        def encoded(prompts: Sequence[str]) -> Text:
            emb, mask = text_batch(self.encoder.encode(prompts))
            return Text(emb.to(self._device), mask.to(self._device))

        negative = request.options.negative
        unwanted = None if negative is None else encoded([negative] * len(request.prompts))
        return encoded(request.prompts), unwanted

    def _given_lowres(self, request: Request) -> torch.Tensor | None:
        """Return the picture that an edit gives to its first member, None when that is the base."""
        names = list(self.members)
        edit = request.edit
        if edit is None or edit.first == names[0]:
            return None
        shape = self.members[names[names.index(edit.first) - 1]].config.shape
        return editing.given_at(edit, shape, len(request.prompts), self._device)

    def _sample_member(
        self,
        name: str,
        config: MemberConfig,
        given: Given,
        request: Request,
        lowres: torch.Tensor | None,
        on_step: OnStep | None,
        on_denoised: Callable[[torch.Tensor], None] | None,
    ) -> torch.Tensor:
        index, seeds = list(self.members).index(name), request.seeds
        if lowres is not None:
            up, aug = sampling.noised_lowres(config, index, lowres, seeds)
            given = replace(given, lowres=up, aug=aug)
        canvas = None
        if request.edit is not None:
            canvas = editing.canvas(request.edit, config.shape, len(seeds), self._device)
        steps = config.sampling.steps

        def tell(step: int) -> None:
            if on_step is not None:
                on_step(name, step + 1, steps)

        net = self.members[name].net
        bf16 = request.options.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            return sampling.draw(net, config, index, given, seeds, tell, canvas, on_denoised)


def _given(
    config: MemberConfig,
    text: Text | None,
    negative: Text | None,
    extras: Extras,
    device: torch.device,
) -> Given:
    """Return what a member is conditioned on beside its low-resolution image."""
    network, labels, images = config.network, extras.labels, extras.images
    return Given(
        text=text if network.text_dim else None,
        negative=negative if network.text_dim else None,
        label=labels.to(device) if labels is not None and network.num_classes else None,
        image=images.to(device).float() if images is not None and network.image_channels else None,
    )


def _load_members(
    where: str, folders: dict[str, str], encoder: TextEncoder, device: str
) -> dict[str, Member]:
    """Load members from their folders and check that they fit each other and the encoder."""
    members = {name: _load_member(name, folder, device) for name, folder in folders.items()}
    _check_members(where, members, encoder)
    return members


def _load_member(name: str, folder: str, device: str) -> Member:
    loaded = snapshot.load(folder)
    provenance.check_images_seen(name, folder, loaded.provenance)
    provenance.check_output(name, folder, loaded.state_dict)
    net = build(loaded.config.network)
    try:
        net.load_state_dict(loaded.state_dict)
    except RuntimeError as err:  # torch's list of missing and unexpected keys or shapes
        raise CheckpointError(
            f"the weights in `{folder}` do not fit the network its config describes: {err}",
            "they were made by another version of the code; train the member again",
        ) from err
    return Member(loaded.config, net.to(device).eval(), loaded.provenance)


def _check_members(folder: str, members: dict[str, Member], encoder: TextEncoder) -> None:
    """Raise unless loaded members fit each other and the text encoder."""
    configs = {name: member.config for name, member in members.items()}
    assembly.check(configs, {n: member.provenance for n, member in members.items()}, encoder.text)
    for name, config in configs.items():
        if config.network.text_dim not in (0, encoder.dim):
            raise CheckpointError(
                f"member {name} of `{folder}` takes text {config.network.text_dim} wide, encoder "
                f"{encoder.text.encoder} gives {encoder.dim}",
                "assemble members that were trained with one encoder",
            )
