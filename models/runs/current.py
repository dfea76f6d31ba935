"""Whether runs are of the data set as it is now: the same images, labels, splits and groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.cache.content import Digests
from features.cache.entry import Entry, cache_root, read_unknown
from features.cache.index import Manifest
from features.cache.verify import find_entries
from features.datasets import Dataset
from features.datasets.findings import findings_of, label_matrix, label_names
from features.datasets.packed import Packed
from features.errors import FirnError, listed
from features.progress import say
from features.storage import artifacts_root
from features.views import label_view
from models.runs.record import Run, load_record, load_run


def current_runs(dataset: Dataset, labels: str, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of the data set as it is now; say of all others why they are left out."""
    if not runs:
        return []
    now = current_manifest(dataset, labels)
    kept = [run for run in runs if run.record.manifest == now]
    for run in runs:
        if run.record.manifest != now:
            say(f"left out {run.name}: {'; '.join(differences(run, dataset)) or 'other bytes of images'}")
    return kept


def say_if_stale(run: Run) -> None:
    """Say how the data of a run that was named by its folder differ from those of today, where these are at hand."""
    try:
        dataset = run.record.data.load()
        if run.record.manifest != current_manifest(dataset, run.record.labels):
            how = "; ".join(differences(run, dataset)) or "other bytes of images"
            say(f"{run.name} in {run.folder} is of other data than {dataset.name} has now: {how}")
    except (FirnError, OSError):
        return


def stale_runs(dataset: Dataset) -> Iterator[tuple[Path, str]]:
    """Yield the folders of runs of other images, labels or splits than the data set has now, and how they differ.

    None where that cannot be told for certain, for what is yielded may be removed: where an image cannot be read just
    now, or where no cache entry says which images were left out.
    """
    now: dict[str, str] = {}
    if not isinstance(dataset.source, Packed) and not (_read(dataset).known().all() and _entries(dataset)):
        return
    for path in sorted((artifacts_root() / "heads").rglob("run.json")):
        record = load_record(path.parent)
        if record is None or record.dataset != dataset.name or record.labels not in label_names(dataset):
            continue
        if record.labels not in now:
            now[record.labels] = current_manifest(dataset, record.labels)
        if record.manifest != now[record.labels]:
            yield path.parent, "; ".join(differences(load_run(path.parent), dataset)) or "other bytes of images"


def current_manifest(dataset: Dataset, labels: str) -> str:
    """Return the digest that a run trained on the data set as it is now would record.

    Only images whose size or times have changed are read. Raises UnknownName for labels that the data set has not.
    """
    manifest = dataset.source.pack.manifest() if isinstance(dataset.source, Packed) else _manifest(dataset)
    return manifest_digest(manifest, class_names(manifest, labels))


def _manifest(dataset: Dataset) -> Manifest:
    """Return what an extraction would list today, without images that could not be read and have not changed since."""
    found = _read(dataset)
    left_out = np.array([s.encode() for entry in _entries(dataset) for s in entry.left_out()], dtype="S64")
    at = np.flatnonzero(found.known() & ~np.isin(found.sha256, left_out))
    splits, groups = (
        np.char.encode(column[at].astype(np.str_), "utf-8") for column in (dataset.splits, dataset.groups)
    )
    about = {"classes": list(dataset.classes), "label_views": dataset.label_views, "findings": dataset.findings}
    about["dataset"] = dataset.name
    labels = dataset.labels[at].astype(np.int64)
    return Manifest(found.ids[at], found.sha256[at], labels, splits, groups, {}, {}, about)


def _read(dataset: Dataset) -> Digests:
    """Return the digests of all images, UNKNOWN for those that cannot be read."""
    memo = Digests.load(cache_root(dataset.name) / "digests.h5")
    return read_unknown(dataset, Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo))


def _entries(dataset: Dataset) -> list[Entry]:
    return [*find_entries(cache_root(dataset.name))]


def differences(run: Run, dataset: Dataset) -> Iterator[str]:
    """Yield in words how the images, labels, splits and groups of a run differ from those of today."""
    record, seen = run.record, run.predictions
    ids, first = np.unique(seen.ids, return_index=True)
    _, then, now = np.intersect1d(ids, np.array(dataset.ids), assume_unique=True, return_indices=True)
    at = first[then]
    if gone := len(ids) - len(then):
        yield f"{gone:,} of its images are gone"
    if new := len(dataset.ids) - len(now):
        yield f"{new:,} images are new"
    plain = record.labels == "classes" and not seen.several and not dataset.findings
    if plain and record.classes != tuple(dataset.classes):
        yield f"its classes are {listed(record.classes)} in this order, now {listed(dataset.classes)} (POSITIVE=)"
    if seen.several != (bool(dataset.findings) and record.labels == "classes"):
        yield "images have several findings now" if dataset.findings else "images have one label now"
    elif seen.several and (words := _changed_findings(run, dataset, at, now)):
        yield words
    if plain:
        classes = np.array(dataset.classes)[dataset.labels[now]]
        if changed := int((np.array(record.classes)[seen.y[at]] != classes).sum()):
            yield f"{changed:,} labels have changed"
    if changed := int((seen.groups[at] != np.asarray(dataset.groups)[now].astype(np.str_)).sum()):
        yield f"{changed:,} groups have changed"
    if record.protocol == "split" and (moved := int(((seen.fold[at] < 0) != (dataset.splits[now] == "test")).sum())):
        yield f"{moved:,} images are in another split"


def _changed_findings(run: Run, dataset: Dataset, at: NDArray[np.intp], now: NDArray[np.intp]) -> str:
    """Say how the labels of a run's findings differ from those of today; empty where they do not."""
    if lost := [name for name in run.record.classes if name not in dataset.findings]:
        return f"findings are gone: {', '.join(lost)}"
    columns = [dataset.findings.index(name) for name in run.record.classes]
    matrix = label_matrix(dataset.classes)[dataset.labels[now]][:, columns]
    changed = int((run.predictions.y[at] != matrix).sum())
    return f"{changed:,} labels have changed" if changed else ""


def class_names(manifest: Manifest, labels: str) -> tuple[str, ...]:
    """Return the classes under a view of the labels, or the names of all findings. Raises UnknownName."""
    findings = findings_of(manifest.about)
    return findings if findings and labels == "classes" else label_view(manifest, labels)[0]


def manifest_digest(manifest: Manifest, classes: Sequence[str]) -> str:
    """Return a digest of classes, names, contents, labels, splits and groups, in the order of names."""
    order = np.argsort(manifest.ids, kind="stable")
    hasher = hashlib.sha256(repr(tuple(classes)).encode())
    if findings := findings_of(manifest.about):
        hasher.update(repr((findings, tuple(manifest.about["classes"]))).encode())
    for column in (manifest.ids, manifest.sha256, manifest.labels, manifest.splits, manifest.groups):
        hasher.update(repr(column.dtype).encode() + np.ascontiguousarray(column[order]).tobytes())
    return hasher.hexdigest()
