"""The model card: what a model is for, what it was made of, how good it is, and what it is not; in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from features.progress import printable
from models.predictor.manifest import Contents
from models.runs.summary import with_interval

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|&~-])")
SCORES = {
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
}


class Exported(NamedTuple):
    """The file that a card lies beside."""

    file: str
    about: str  # the format
    side: int  # of the square that it takes
    names: tuple[str, tuple[str, ...]]  # of input and outputs
    checked: str  # on what, and how well it agreed


def render_card(contents: Contents, exported: Exported) -> str:
    """Return the card of an exported bundle (Mitchell et al. 2019, arXiv:1810.03993). Names are escaped."""
    card = contents.card
    sections = {
        f"Model card: {_plain(contents.name)}": ["**For research. Not a medical device.**"],
        "Intended use": _use(contents),
        "Input and output": _ports(contents, exported),
        "Training data": _data(card.get("data", {}), card.get("run", {})),
        "Results": _results(card.get("results", {}), card.get("data", {})),
        "Limits": _limits(contents),
        "Made with": [
            f"- {_plain(name)} {_plain(str(version))}" for name, version in sorted(card.get("versions", {}).items())
        ],
    }
    first, *others = sections.items()
    parts = [f"# {first[0]}", *first[1]]
    for title, lines in others:
        parts += ["", f"## {title}", *lines]
    return "\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Return a name so that neither Markdown nor HTML finds anything in it."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _use(contents: Contents) -> list[str]:
    classes = ", ".join(_plain(name) for name in contents.classes)
    networks = ", ".join(dict.fromkeys(_plain(network.key.backbone) for network in contents.networks))
    return [
        f"To study how well images like the training images can be told apart as: {classes}. The networks are "
        f"{networks}, pretrained on ImageNet. It was not examined for any clinical use, on no image of another "
        "hospital, device or population than those below, and no decision about a patient may rest on it."
    ]


def _ports(contents: Contents, exported: Exported) -> list[str]:
    inputs, outputs = exported.names
    way = contents.networks[0].key.preprocess
    lines = [
        f"- `{exported.file}`: {exported.about}.",
        f"- `{inputs}`: (batch, 3, {exported.side}, {exported.side}) float32 on the scale 0..255, grey images three "
        f"times over; the square is made so: {_plain(way.partition('; mean')[0])}. Mean and deviation are inside.",
        f"- `{outputs[0]}`: (batch, {len(contents.classes)}) probabilities as in the results below; "
        f"`{outputs[1]}`: the same after calibration on out-of-fold predictions.",
    ]
    for name, point in contents.points.items():
        lines.append(f"- operating point {_plain(name)}: {_plain(contents.classes[1])} from {point.threshold:.6g} up")
    return [*lines, f"- {exported.checked[0].upper()}{exported.checked[1:]}."]


def _data(data: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    unit = data.get("grouped_by") or "image"
    lines = [f"Data set {_plain(str(data.get('dataset', '?')))}, split by {_plain(str(data.get('split_by', '?')))}, "]
    lines[0] += f"protocol {_plain(str(run.get('protocol', '?')))}; what is independent of each other: {_plain(unit)}."
    lines += ["", "| split | " + " | ".join(_plain(c) for c in data.get("classes", ())) + " | groups |"]
    lines.append("|---" * (len(data.get("classes", ())) + 2) + "|")
    for split, counts in data.get("counts", {}).items():
        numbers = " | ".join(f"{n:,}" for n in counts.values())
        lines.append(f"| {_plain(split)} | {numbers} | {data.get('groups', {}).get(split, 0):,} |")
    note = data.get("note")
    return [*lines, "", *([f"Licence and origin: {_plain(note)}"] if note else []), f"Manifest {data.get('manifest')}"]


def _results(results: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the scores with their 95 % intervals, on test images where there are some, and out of fold."""
    columns = [("test images", results.get("test")), ("out of fold", results.get("validation"))]
    shown = [(name, scores) for name, scores in columns if scores]
    lines = ["| | " + " | ".join(name for name, _ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(with_interval(s[key]) for _, s in shown)} |" for key, label in SCORES.items()]
    unit = data.get("grouped_by") or "image"
    return [*lines, "", f"Intervals of 95 % by {_plain(unit)}; out-of-fold scores took part in choosing the model."]


def _limits(contents: Contents) -> Iterator[str]:
    yield "- Probabilities hold for the share of classes in the training data; elsewhere they have to be recalibrated."
    yield "- Images from other devices, projections, ages or processing may be judged wrongly and with confidence."
    if contents.outliers:
        yield (
            f"- The graph does not flag images unlike the training images; `make predict` does, beyond the "
            f"{contents.outliers['quantile']:g} quantile of held-out training distances."
        )
    if any(part.head == "knn" for part in contents.parts):
        yield "- Features of training images are inside, for nearest neighbours are made of them."
    yield "- Whatever shortcut the training images offer (markers, borders, devices) the model may have taken."
