"""From member snapshots to a cascade directory: checked against each other, copied, then listed.

```
<folder>/cascade.json             manifest, written last: members, text encoder, fingerprint
<folder>/<member>-<fingerprint>/  a copy of the member's snapshot
```
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import safetensors.torch

from imagen import manifest, provenance, snapshot, storage
from imagen.config import build as build_config
from imagen.config import to_tree
from imagen.errors import CheckpointError
from imagen.member import MemberConfig
from imagen.project import check_chain
from imagen.text.config import TextConfig

MANIFEST = "cascade.json"
MEMBER_FOLDER = re.compile(r"(base|sr\d+)-[0-9a-f]{16}")


def assemble(
    folder: str,
    snapshots: dict[str, str],
    text: TextConfig,
    encoder_fingerprint: str,
    before_manifest: Callable[[], None] = lambda: None,
) -> str:
    """Copy snapshots (member -> folder) into a cascade directory; return its fingerprint.

    `before_manifest` is called when all members lie there: for what belongs beside them. Raises
    CheckpointError when a snapshot is damaged, unfinished, untrained, or was trained with another
    encoder or for another cascade; ConfigError when the members form no chain. Assembling the same
    snapshots again writes nothing.
    """
    body = describe(snapshots, text, encoder_fingerprint)
    members: dict[str, dict[str, Any]] = body["members"]
    fingerprint = manifest.fingerprint(body)
    folders = {name: storage.join(folder, entry["folder"]) for name, entry in members.items()}
    if _fingerprint_of(folder) == fingerprint and all(map(_is_whole, folders.values())):
        return fingerprint
    for name, source in snapshots.items():  # all of them, before anything is written
        for _, data in _files(source, members[name]):
            provenance.check_output(name, source, safetensors.torch.load(data))
    for name, source in snapshots.items():
        _copy_snapshot(source, folders[name], members[name])
    before_manifest()
    manifest.write(storage.join(folder, MANIFEST), "cascade", {"fingerprint": fingerprint, **body})
    _delete_others(folder, {entry["folder"] for entry in members.values()})
    return fingerprint


def describe(
    snapshots: Mapping[str, str], text: TextConfig, encoder_fingerprint: str
) -> dict[str, Any]:
    """Return what a cascade of these snapshots is; its fingerprint is the cascade's.

    Raises CheckpointError or ConfigError as `assemble` does, but reads no weights.
    """
    members = {}
    for name, source in snapshots.items():
        body = manifest.read(storage.join(source, snapshot.MANIFEST), "snapshot", CheckpointError)
        body.pop("extras", None)  # nothing is sampled from them
        trained_with = body["provenance"].get("encoder_fingerprint")
        takes_text = body["config"]["network"]["text_dim"] > 0
        if takes_text and trained_with != encoder_fingerprint:
            raise CheckpointError(
                f"snapshot `{source}` was trained with encoder {trained_with}, not with "
                f"{encoder_fingerprint} ({text.encoder})",
                f"train {name} again, or set text.encoder to what it was trained with",
            )
        provenance.check_images_seen(name, source, body["provenance"])
        members[name] = {"folder": f"{name}-{manifest.fingerprint(body)}", **body}
    _check_members(members, snapshots, text)
    return {"members": members, "text": to_tree(text), "encoder_fingerprint": encoder_fingerprint}


def _check_members(
    members: Mapping[str, dict[str, Any]], sources: Mapping[str, str], text: TextConfig
) -> None:
    """Raise unless the listed members form a chain that each was trained for."""
    configs = {
        name: build_config(
            MemberConfig, entry["config"], storage.join(sources[name], snapshot.MANIFEST)
        )
        for name, entry in members.items()
    }
    check(configs, {name: entry["provenance"] for name, entry in members.items()}, text)


def check(
    configs: dict[str, MemberConfig], provenances: Mapping[str, Mapping[str, Any]], text: TextConfig
) -> None:
    """Raise ConfigError or CheckpointError unless members fit each other, in their order."""
    check_chain(configs, text)
    previous = None
    for name, config in configs.items():
        provenance.check_previous(name, provenances[name], previous)
        previous = config.shape


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


def _files(source: str, body: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of a snapshot's files, one at a time. Raises CheckpointError."""
    for file, entry in body["files"].items():
        path = storage.join(source, file)
        yield file, manifest.check_file(path, storage.get(path), entry, CheckpointError)


def _copy_snapshot(source: str, target: str, body: dict[str, Any]) -> None:
    """Copy the weights of a snapshot and its manifest, without what is not copied."""
    for file, data in _files(source, body):
        storage.put(storage.join(target, file), data)
    facts = {key: value for key, value in body.items() if key not in ("format", "folder")}
    manifest.write(storage.join(target, snapshot.MANIFEST), snapshot.KIND, facts)
