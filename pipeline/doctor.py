"""doctor: what a data set is, what a network would see of it, what that will cost, and whether to go ahead."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from features.datasets import SPLITS, Dataset
from features.datasets.findings import ONE, has_any, label_matrix
from features.devices import BATCH, cores
from features.errors import BadDataset, FirnError, counted
from features.images import Geometry
from features.inspection.diagnoses import Case, Diagnosis, diagnose
from features.inspection.survey import Examination, examine, sample
from features.options import ExtractOptions, FeatureOptions, Taking
from features.progress import duration, printable, shown
from features.request import DEFAULT_PREPROCESS, Request, resolve
from features.storage import artifacts_root, write_whole
from features.views import choose_blocks

HEADERS, IMAGES, SHOWN = 2000, 256, 8  # looked at, decoded, on the sheet
TIMED = {"cpu": 384, "cuda": 4096}  # sent through the network
CLASSES = 24  # on the sheet and in the table
PATIENCE = 15.0  # seconds for each of these
ROW = 200  # bytes of ids, digests and labels that an image takes beside its features
VERDICTS = {"fault": "not ready", "warning": "ready with warnings", "note": "ready"}


class _Cost(NamedTuple):
    """What the extraction will take."""

    pooled: int  # bytes
    maps: int  # bytes more for the maps of the last block
    asked: int  # bytes with the maps that were asked for
    rate: float | None  # images per second, measured
    timed: int  # images that it was measured on
    device: str
    precision: str


def doctor(features: FeatureOptions, how: Annotated[ExtractOptions, Taking("maps")]) -> tuple[list[str], int]:
    """Examine a data set and what its extraction will take; return the lines to print, and 2 where not to go ahead.

    doctor.json and sheet.png are written to `artifacts/doctor/<dataset>`; no feature is computed for keeps. What is no
    data set is a fault. Raises BadDataset for a pack, which has no images.
    """
    try:
        whole, seed = features.data.load(), features.data.seed
    except BadDataset as error:
        return [printable(f"fault: {error}"), f"verdict: {VERDICTS['fault']}"], 2
    images = has_any(whole)
    images.source.stamps([])  # a pack has no images and says so
    way, troubles = features.preprocess or DEFAULT_PREPROCESS, list[str]()
    try:
        requests = resolve(whole, features)
        cost: _Cost | None = _cost(images, requests, how.maps, seed)
    except FirnError as error:
        requests, cost, troubles = [], None, [str(error)]
    geometry = requests[0].spec.geometry(way) if requests else Geometry(DEFAULT_PREPROCESS, 224, 256, "bilinear")
    with shown(f"look at {images.name}") as progress:
        limits: dict[str, Any] = {"headers": HEADERS, "images": IMAGES, "shown": SHOWN, "most_seconds": PATIENCE}
        found = examine(images, geometry, **limits, seed=seed, progress=progress)
    size, free = max((r.spec.size for r in requests), default=0), _free(artifacts_root())
    case = Case(images, found, size, geometry.how, cost.asked if cost else 0, free, troubles)
    diagnoses = diagnose(case)
    folder = artifacts_root() / "doctor" / images.name
    write_whole(folder / "sheet.png", [_sheet(case)])
    verdict = VERDICTS[diagnoses[0].level] if diagnoses else "ready"
    told = _told(case, cost, diagnoses, verdict)
    write_whole(folder / "doctor.json", [json.dumps(told, indent=1, ensure_ascii=False).encode()])
    lines = [*_lines(case, whole, requests, cost), f"sheet     {folder / 'sheet.png'}", ""]
    lines += [f"{d.level}: {d.words}" for d in diagnoses] + [f"verdict: {verdict}"]
    return [printable(line) for line in lines], 2 if verdict == VERDICTS["fault"] else 0


def _cost(dataset: Dataset, requests: Sequence[Request], maps: str, seed: int) -> _Cost:
    """Return what filling these entries takes, from a short run of the real thing. Imports torch."""
    from features.devices import checked
    from features.extraction.job import Job
    from features.inspection.throughput import measure_rate

    def size(request: Request, kept: Sequence[str]) -> int:
        return len(dataset) * (Job(request.entry, request.spec, request.preprocess, tuple(kept)).row_bytes() + ROW)

    first, kind = requests[0], requests[0].device.partition(":")[0]
    wanted = [choose_blocks(list(r.spec.blocks), maps) if maps else () for r in requests]
    pooled, last = (sum(size(r, kept(r)) for r in requests) for kept in (lambda r: (), lambda r: [*r.spec.blocks][-1:]))
    rows = sample(dataset, TIMED[kind], seed=seed + 1)  # others than are looked at, which are in memory by then
    rate = measure_rate(
        dataset.source,
        [dataset.ids[row] for row in rows.tolist()],
        [r.spec for r in requests],
        first.preprocess,
        device=checked(first.device),
        precision=first.entry.key.precision,
        batch_size=min(BATCH[kind], max(1, len(rows) // 3)),
        workers=cores(),
        images=len(dataset),
        most_seconds=PATIENCE,
    )
    asked = sum(size(r, kept) for r, kept in zip(requests, wanted, strict=True))
    measured = rate.per_second or None
    return _Cost(pooled, last - pooled, asked, measured, rate.images, first.device, first.entry.key.precision)


def _free(folder: Path) -> int:
    """Return the bytes that are free where the cache will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _sheet(case: Case) -> bytes:
    """Draw some images of each class as the network will see them."""
    from pipeline.render.contact_sheet import Sheet, Strip, Tile, draw_sheet

    dataset, strips = case.dataset, []
    for label, name in enumerate(dataset.classes[:CLASSES]):
        own = [one for one in case.found.seen if one.square is not None and dataset.labels[one.row] == label]
        tiles = [
            Tile(
                one.square,
                [],
                (
                    dataset.ids[one.row].rpartition("/")[2],
                    f"{one.facts.width} x {one.facts.height}, {one.facts.bits} bits",
                ),
                False,
            )
            for one in own
            if one.square is not None
        ]
        count = int((dataset.labels == label).sum())
        strips.append(Strip(f"{name}: {count:,} images", tiles))
    side = case.size or "224 (no network could be made ready)"
    note = f"What the network will see: {case.preprocess} to {side} pixels. Below each its own size and depth."
    return draw_sheet(Sheet(f"{dataset.name}: before the network", [note], strips, SHOWN))


def _lines(case: Case, whole: Dataset, requests: Sequence[Request], cost: _Cost | None) -> list[str]:
    """Return what there is, a line each."""
    dataset, found = case.dataset, case.found
    of_groups = (
        f"{len(np.unique(dataset.groups)):,} groups ({dataset.grouped_by})" if dataset.grouped_by else "no groups"
    )
    of_classes = counted(len(dataset.classes), "class", "classes")
    looked = len(found.facts) + len(found.unreadable)
    return [
        f"{dataset.name}: {counted(len(dataset), 'image')} of {of_classes}, {of_groups}",
        f"split by {dataset.split_by}",
        *_of_classes(dataset),
        *_table(dataset),
        *_of_findings(whole),
        f"looked at {looked:,} headers of {len(dataset):,} images, and at {len(found.seen):,} images whole",
        *_of_files(found),
        *_of_cost(case, requests, cost),
    ]


def _of_classes(dataset: Dataset) -> list[str]:
    """Return the positive class and the further columns, where there are any."""
    guess = " (a guess: no name says which class is the finding)" if dataset.positive_is_guess else ""
    lines = [f"positive  {dataset.positive}{guess}"] if dataset.positive else []
    return lines + ([f"columns   {', '.join(dataset.columns)}"] if dataset.columns else [])


def _of_findings(dataset: Dataset) -> list[str]:
    """Return images with each finding, images without its label, and what is left out of the findings."""
    if not dataset.findings:
        return []
    matrix = label_matrix(dataset.classes)[dataset.labels]
    width = max(len(name) for name in dataset.findings)
    pairs = zip(dataset.findings, (matrix == 1).sum(axis=0).tolist(), (matrix < 0).sum(axis=0).tolist(), strict=True)
    lines = [
        f"  {name:<{width}}{n:>9,} images{f', {gone:,} without its label' if gone else ''}" for name, n, gone in pairs
    ]
    return [f"findings  {len(dataset.findings)}, LABELS={ONE}{dataset.findings[0]} is one of them alone", *lines]


def _table(dataset: Dataset) -> list[str]:
    """Return images of each class by split, and groups."""
    splits = [split for split in SPLITS if (dataset.splits == split).any()]
    width = max(8, *(len(name) for name in dataset.classes))
    unit = ["groups"] if dataset.grouped_by else []
    lines = ["  " + " " * width + "".join(f"{title:>{max(10, len(title) + 2)}}" for title in [*splits, *unit])]
    for label, name in enumerate(dataset.classes[:CLASSES]):
        own = dataset.labels == label
        cells = [int((own & (dataset.splits == split)).sum()) for split in splits]
        cells += [len(np.unique(dataset.groups[own]))] if unit else []
        padded = (f"{n:>{max(10, len(title) + 2)},}" for n, title in zip(cells, [*splits, *unit], strict=True))
        lines.append(f"  {name:<{width}}" + "".join(padded))
    return lines + ([f"  ... and {len(dataset.classes) - CLASSES} more"] if len(dataset.classes) > CLASSES else [])


def _of_files(found: Examination) -> list[str]:
    facts = list(found.facts.values())
    if not facts:
        return []
    kinds = Counter(f"{f.format} {f.photometric} {f.bits} bits" for f in facts)
    ratios = sorted(f.width / max(f.height, 1) for f in facts)
    area = sorted(facts, key=lambda f: f.width * f.height)
    small, large = (f"{f.width:,} x {f.height:,}" for f in (area[0], area[-1]))
    lines = [
        f"files     {', '.join(f'{kind} ({n:,})' for kind, n in kinds.most_common(6))}",
        f"sizes     {small} to {large}; width / height {ratios[0]:.2f} to {ratios[-1]:.2f}, "
        f"median {ratios[len(ratios) // 2]:.2f}",
    ]
    if found.seen:
        low, high = min(one.low for one in found.seen), max(one.high for one in found.seen)
        lines.append(f"values    {low:,.6g} to {high:,.6g} as stored")
    return lines


def _of_cost(case: Case, requests: Sequence[Request], cost: _Cost | None) -> list[str]:
    if cost is None:
        return []
    names = ", ".join(f"{r.spec.name} ({r.spec.size} pixels, {case.preprocess})" for r in requests)
    lines = [
        f"network   {names}; {cost.device}, {cores()} cores, {cost.precision}",
        f"cache     about {cost.pooled / 1e6:,.0f} MB, {(cost.pooled + cost.maps) / 1e6:,.0f} MB with the maps of the "
        f"last block; {case.free / 1e9:,.1f} GB are free",
    ]
    if cost.rate:
        lines.append(
            f"time      about {duration(len(case.dataset) / cost.rate)}: an estimate from {cost.timed:,} images, "
            f"{cost.rate:,.0f} a second"
        )
    return lines


def _told(case: Case, cost: _Cost | None, diagnoses: Sequence[Diagnosis], verdict: str) -> dict[str, Any]:
    """Return what was found, ready for JSON."""
    dataset, found = case.dataset, case.found
    return {
        "schema": 1,
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "images": len(dataset),
        "counts": {
            split: {
                name: int(((dataset.splits == split) & (dataset.labels == k)).sum())
                for k, name in enumerate(dataset.classes)
            }
            for split in np.unique(dataset.splits).tolist()
        },
        "groups": len(np.unique(dataset.groups)) if dataset.grouped_by else None,
        "grouped_by": dataset.grouped_by,
        "split_by": dataset.split_by,
        "positive": dataset.positive,
        "positive_is_guess": dataset.positive_is_guess,
        "columns": list(dataset.columns),
        "left_out": [asdict(record) for record in dataset.left_out],
        "headers": len(found.facts) + len(found.unreadable),
        "decoded": len(found.seen),
        "kinds": Counter(f"{f.format} {f.photometric} {f.bits}" for f in found.facts.values()),
        "unreadable": [reason for _, reason in sorted(found.unreadable.items())],
        "preprocess": case.preprocess,
        "size": case.size,
        "cost": cost._asdict() if cost else None,
        "free": case.free,
        "diagnoses": [d._asdict() for d in diagnoses],
        "verdict": verdict,
    }
