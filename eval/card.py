"""The model card: README.md of a published cascade, as plain Markdown or with the hub's fields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import imagen
from eval.config import UNSTATED
from eval.figures import figures, headlines, told
from eval.history import Evaluation
from imagen.config import build, dump_yaml
from imagen.data.images import told as size_told
from imagen.member import MemberConfig

HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "openrail", "creativeml-openrail-m", "gpl-3.0", "unknown"),
}
"""Licences that the hub knows by these names; others are `other` with a name of their own."""
PER_PART = ("per_digit.", "per_phrasing.", "judge.")
"""Figures that metrics.json has and the card leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What nobody can find out from files."""

    weights_license: str = UNSTATED
    data_license: str = UNSTATED
    layout: Literal["imagen", "hub"] = "imagen"
    """`hub`: the card begins with the fields that the Hugging Face hub reads."""


def card(
    evaluation: Evaluation, body: Mapping[str, Any], sums: Mapping[str, str], about: About
) -> str:
    """Return the card of a cascade. `body`: its manifest; `sums`: SHA-256 of the members' files.

    It follows from its arguments alone: the same cascade has the same card.
    """
    parts = [
        *([_front_matter(about)] if about.layout == "hub" else []),
        f"# {evaluation.metrics['name']}",
        _intro(evaluation, body),
        _samples(evaluation),
        "## How to sample",
        _how(evaluation, body),
        "## How it does",
        _figures(evaluation),
        "## Members",
        _members(body),
        "## Where it comes from",
        _origin(evaluation, body, about),
        "## Checksums",
        "SHA-256; `sha256sum -c SHA256SUMS` checks all files here but `cascade.json`, which lists "
        "the weights with their CRC-32C.",
        "```\n" + "\n".join(f"{digest}  {name}" for name, digest in sorted(sums.items())) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(about: About) -> str:
    fields: dict[str, Any] = {}
    if about.weights_license in HUB_LICENSES:
        fields["license"] = about.weights_license
    elif about.weights_license != UNSTATED:
        fields |= {"license": "other", "license_name": about.weights_license}
    fields |= {
        "library_name": "imagen-cascade",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusion", "imagen", "cascaded-diffusion"],
    }
    return f"---\n{dump_yaml(fields)}---"


def _intro(evaluation: Evaluation, body: Mapping[str, Any]) -> str:
    sizes = [_size(entry) for entry in body["members"].values()]
    encoder = evaluation.metrics["encoder"]["name"]
    return (
        f"A text-to-image cascade in the manner of Imagen: {' to '.join(sizes)} pixels, from the "
        f"embeddings of the frozen text encoder `{encoder}`."
    )


def _size(entry: Mapping[str, Any]) -> str:
    return size_told(*build(MemberConfig, entry["config"]).shape)


def _samples(evaluation: Evaluation) -> str:
    return "![Samples, a row for each prompt](grid.png)" if evaluation.has("grid.png") else ""


def _how(evaluation: Evaluation, body: Mapping[str, Any]) -> str:
    prompt = max((row["prompt"] for row in evaluation.images[:10]), key=len, default="")
    lines = [
        "```python",
        "import imagen",
        'cascade = imagen.Cascade.load("FOLDER")  # this folder: a path, or a URL like gs://…',
        f'cascade.draw({_quoted(prompt)}, seed=0).save("picture.png")',
        "```",
        "",
        f"Or `imagen sample {_quoted(prompt)} --cascade FOLDER --out picture.png`. Both come with "
        f"imagen-cascade {imagen.__version__}.",
    ]
    encoder = body["text"]["encoder"]
    if "/" in encoder and (encoder.startswith(("/", ".")) or "://" in encoder):
        lines.append(
            f"\nThe text encoder lay at `{encoder}`; where it lies elsewhere, say so: "
            '`Cascade.load("FOLDER", encoder="PATH")`. It has to be the same one.'
        )
    return "\n".join(lines)


def _quoted(prompt: str) -> str:
    return '"' + prompt.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _figures(evaluation: Evaluation) -> str:
    found = figures(evaluation.metrics)
    first = headlines(found)
    keys = [*first, *(k for k in found if k not in first and not k.startswith(PER_PART))]
    rows = []
    for key in keys:
        how, one = told(key), found[key]
        if one.value is not None:
            n = "" if one.n is None else f"{one.n:,}"
            rows.append([how.title, how.text(one.value), how.interval(one.interval), n, how.better])
    note = (
        f"Evaluation `{evaluation.name}`: {evaluation.body['images']:,} images. All numbers are in "
        "`metrics.json`."
    )
    if not rows:
        return note
    return note + "\n\n" + _table(["figure", "value", "95 % interval", "n", "better"], rows)


def _members(body: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in body["members"].items():
        network, provenance = entry["config"]["network"], entry["provenance"]
        rows.append(
            [
                name, _size(entry), f"{int(provenance['images_seen']):,}",
                f"{network['kind']}, widths {network['widths']}",
                str(provenance.get("code_version", "unknown")),
            ]
        )  # fmt: skip
    return _table(["member", "pixels", "images seen", "network", "code version"], rows)


def _origin(evaluation: Evaluation, body: Mapping[str, Any], about: About) -> str:
    text = body["text"]
    encoder = f"`{text['encoder']}`, fingerprint `{body['encoder_fingerprint']}`"
    rows = [
        ["cascade", f"`{evaluation.body['cascade']}`"],
        ["data", f"fingerprint `{evaluation.metrics['data']}`"],
        ["text encoder", encoder],
        ["licence of the weights", about.weights_license],
        ["licence of the data", about.data_license],
        ["published with", f"imagen-cascade {imagen.__version__}"],
    ]
    return _table(["", ""], rows)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(_line(line) for line in lines)


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join(_cells(cells))} |"


def _cells(cells: list[Any]) -> Iterator[str]:
    for cell in cells:
        yield str("" if cell is None else cell).replace("|", "\\|").replace("\n", " ")
