"""audit: cached features and images -> duplicates, leaks, doubtful labels, odd images, and the score without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import cache_root
from features.datasets import Dataset
from features.datasets.packed import Packed
from features.inspection.thumbnails import BLACK, FLAT, load_thumbnails
from features.options import FeatureOptions, Taking, make_command
from features.progress import shown
from features.request import open_features
from features.storage import write_whole
from features.views import Cached, choose_blocks, join, label_view, load_manifest, pooled_view
from models.audit import Evidence, Leakage, Subject, find_all, measure_leakage
from models.audit.label_errors import MARGIN
from models.audit.neighbours import FAR
from models.runs.current import manifest_digest
from models.runs.options import RunOptions
from models.runs.scores import as_dict
from pipeline.render.audit_page import findings_csv, findings_folder, findings_page, print_findings

_FORMAT = 2  # raised when a check changes, so that older audits are done again
_EXAMPLES = 3  # findings of each check in the summary


def audit(features: FeatureOptions, run: Annotated[RunOptions, Taking("labels")]) -> list[str]:
    """Audit a data set whose features are cached, or a pack; print the summary and return the path of the page.

    findings.csv, audit.json and audit.html are written to `artifacts/audit/<dataset>`; an audit of the same images,
    labels and features that is there is shown again.
    """
    dataset = features.data.load()
    entries = open_features(dataset, features)
    subject = _subject(entries, run.labels)
    folder = findings_folder(dataset.name, run.labels)
    identity = _identity(entries, subject, run.labels, features.data.seed)
    results = _results_in(folder, identity)
    if results is None:
        asked = {"asked": features.data.dataset, "labels": run.labels, "seed": features.data.seed}
        results = _examine(dataset, entries, subject, folder, asked)
    print_findings(results)
    return [str(folder / "audit.html")]


def _subject(entries: Sequence[Cached], labels: str) -> Subject:
    """Return the features of the last block, of several backbones side by side, without thumbnails."""
    views = [pooled_view(entry, choose_blocks(entry.key.blocks, "1")) for entry in entries]
    view, manifest = views[0] if len(views) == 1 else join(views), load_manifest(entries[0])
    classes, merged = label_view(manifest, labels)
    view = view if (merged >= 0).all() else view.take(merged[view.y] >= 0)
    ids = np.char.decode(manifest.ids, "utf-8")
    order = np.argsort(ids, kind="stable")
    rows = order[np.searchsorted(ids[order], view.ids)]
    return Subject(
        view.ids,
        merged[view.y],
        view.splits,
        view.groups,
        manifest.sha256[rows],
        view.X,
        classes,
        manifest.about["grouped_by"],
        left_out=tuple(manifest.left_out.values()),
    )


def _identity(entries: Sequence[Cached], subject: Subject, labels: str, seed: int) -> str:
    """Return a digest of all that an audit depends on."""
    parts = [_FORMAT, labels, seed, subject.classes, subject.grouped_by, subject.left_out]
    hasher = hashlib.sha256(repr([*parts, *(entry.key.digest() for entry in entries)]).encode())
    for column in (subject.ids, subject.y, subject.splits, subject.groups, subject.sha256):
        hasher.update(repr(column.dtype).encode() + np.ascontiguousarray(column).tobytes())
    hasher.update(repr([type(entry).__name__ for entry in entries]).encode())
    return hasher.hexdigest()


def _results_in(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the results of the same audit, or None where there are none."""
    try:
        results = json.loads((folder / "audit.json").read_text())
    except (OSError, ValueError):
        return None
    there = all((folder / name).is_file() for name in ("findings.csv", "audit.html"))
    return results if there and isinstance(results, dict) and results.get("identity") == identity else None


def _examine(
    images: Dataset, entries: Sequence[Cached], subject: Subject, folder: Path, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Look at everything, write the three files, audit.json last, and return what it holds."""
    packed = isinstance(images.source, Packed)
    if not packed:
        subject = replace(subject, thumbnails=_thumbnails(images, subject))
    with _steps(images.name) as step:
        evidence = Evidence(subject, seed=asked["seed"], step=step)
        found, left_out = find_all(evidence)
        step("fit the head on the training images")
        leakage = measure_leakage(subject, evidence.leaked, seed=asked["seed"])
    results = {
        **_about(images, entries, subject, asked),
        "counts": {name: len(each) for name, each in found.items()},
        "left_out": left_out,
        "examples": {name: [finding._asdict() for finding in each[:_EXAMPLES]] for name, each in found.items()},
        "thresholds": _thresholds(evidence),
        "out_of_fold_accuracy": _accuracy(evidence, left_out),
        "test_roc_auc": _scores(leakage),
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "opencv-python-headless")},
        "manifest": manifest_digest(load_manifest(entries[0]), subject.classes),
        "command": _command(entries, asked),
        "identity": _identity(entries, subject, asked["labels"], asked["seed"]),
    }
    write_whole(folder / "findings.csv", [findings_csv(finding for each in found.values() for finding in each)])
    write_whole(folder / "audit.html", [findings_page(results, found, None if packed else images.source).encode()])
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "audit.json", [text.encode()])
    return results


def _thumbnails(images: Dataset, subject: Subject) -> NDArray[np.uint8]:
    """Return the thumbnails of the images, (n, side, side), remembered beside the cache."""
    memo = cache_root(images.name) / "thumbnails.h5"
    with shown(f"look at {images.name}") as progress:
        return load_thumbnails(images, subject.ids, subject.sha256, memo, progress=progress)


def _about(images: Dataset, entries: Sequence[Cached], subject: Subject, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was audited."""
    return {
        "dataset": images.name,
        **asked,
        "classes": list(subject.classes),
        "backbone": " ".join(entry.key.backbone for entry in entries),
        "entries": [entry.key.folder() for entry in entries],
        "images": {str(s): int(k) for s, k in zip(*np.unique(subject.splits, return_counts=True), strict=True)},
        "grouped_by": subject.grouped_by,
        "split_by": images.split_by,
        "note": images.note,
    }


def _command(entries: Sequence[Cached], asked: Mapping[str, Any]) -> str:
    """Return the command that makes the same audit again."""
    key = entries[0].key
    return make_command(
        "audit",
        dataset=asked["asked"],
        backbone=" ".join(entry.key.backbone for entry in entries),
        labels=asked["labels"] if asked["labels"] != "classes" else "",
        preprocess=key.preprocess_mode,
        precision=key.precision,
        seed=str(asked["seed"]),
    )


@contextmanager
def _steps(name: str) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Give a function that names a step and returns the one that shows how far it is."""
    with ExitStack() as open_steps:

        def step(what: str) -> Callable[[int, int], None]:
            open_steps.close()
            return open_steps.enter_context(shown(f"audit {name}: {what}", "steps"))

        yield step


def _thresholds(evidence: Evidence) -> dict[str, float | list[float] | None]:
    """Return what findings were measured against; those of pairs of images are missing in an audit of a pack."""
    near = evidence.thresholds
    measured: dict[str, Any] = {} if near is None else near._asdict()
    return {**measured, "margin": MARGIN, "robust_z": FAR, "black": BLACK, "flat": FLAT}


def _accuracy(evidence: Evidence, left_out: Mapping[str, str]) -> float | None:
    """Return how often the out-of-fold head agrees with the labels: where it seldom does, it knows little of errors."""
    if "label-error" in left_out:
        return None
    return float((evidence.probabilities.argmax(1) == evidence.subject.y).mean())


def _scores(leakage: Leakage | None) -> dict[str, Any] | None:
    """Return the test scores with and without leaked images; None where the head cannot be trained or tested."""
    if leakage is None:
        return None
    told = {"everything": as_dict(leakage.everything), "clean": as_dict(leakage.clean)}
    return {**told, "images": leakage.images, "leaked": leakage.leaked}
