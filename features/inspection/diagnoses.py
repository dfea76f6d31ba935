"""The table DIAGNOSES: faults, warnings and notes on a data set before its features are extracted."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets import Dataset
from features.datasets.file_facts import equal_bytes
from features.datasets.splits import straddling
from features.inspection.survey import Examination
from features.inspection.thumbnails import FLAT, blank

Level = Literal["fault", "warning", "note"]
FEW = 10  # images of a class to learn from
DIM = 64  # of 255: an image that uses no more of its scale
UNUSED = 2  # highest bits of a deep image that nothing reaches
STRETCHED = 2.0  # aspect ratio
TELLING = 0.9  # ROC AUC at which one fact of the files alone tells a class from the rest
LOPSIDED = 10  # images of the largest class for each of the smallest


class Diagnosis(NamedTuple):
    """A fault, warning or note on a data set."""

    name: str  # row of DIAGNOSES
    level: Level
    words: str


@dataclass(frozen=True)
class Case:
    """A data set with its survey, the network's needs and the disk: what diagnoses are made from."""

    dataset: Dataset
    found: Examination
    size: int = 0  # side of the largest square that a network sees; 0 where none could be made ready
    preprocess: str = "squash"
    needed: int = 0  # bytes of the cache to come, with the maps that were asked for
    free: int = 1  # bytes of the disk
    troubles: list[str] = field(default_factory=list)  # why networks, weights or device could not be made ready


def _unready(case: Case) -> Iterator[str]:
    yield from case.troubles


def _disk(case: Case) -> Iterator[str]:
    if case.needed > case.free:
        yield f"the cache needs {case.needed / 1e6:,.0f} MB and {case.free / 1e6:,.0f} MB are free; set FIRN_ARTIFACTS"


def _tight_disk(case: Case) -> Iterator[str]:
    if case.free >= case.needed > case.free / 2:
        yield f"the cache takes more than half of what is free ({case.needed / 1e6:,.0f} of {case.free / 1e6:,.0f} MB)"


def _mostly_unreadable(case: Case) -> Iterator[str]:
    bad, good = len(case.found.unreadable), len(case.found.facts)
    if bad > good:
        yield f"{bad:,} of {bad + good:,} images looked at cannot be read, such as {_first(case.found.unreadable)}"


def _unreadable(case: Case) -> Iterator[str]:
    bad, good = len(case.found.unreadable), len(case.found.facts)
    if 0 < bad <= good:
        yield (
            f"{bad:,} of {bad + good:,} images looked at cannot be read and will be left out: "
            f"{_first(case.found.unreadable)}"
        )


def _first(reasons: dict[int, str]) -> str:
    return next(iter(reasons.values())).removesuffix("; replace the file or take it out of the data set")


def _lone_group(case: Case) -> Iterator[str]:
    dataset = case.dataset
    for label, name in enumerate(dataset.classes):
        own = (dataset.labels == label) & (dataset.splits != "test")
        if len(np.unique(dataset.groups[own])) == 1:
            unit = dataset.grouped_by or "image"
            yield f"all images of {name} to learn from come from one {unit}: heads cannot be trained"


def _few(case: Case) -> Iterator[str]:
    dataset = case.dataset
    counts = np.bincount(dataset.labels[dataset.splits != "test"], minlength=len(dataset.classes)).tolist()
    if small := [f"{name} ({n})" for name, n in zip(dataset.classes, counts, strict=True) if n < FEW]:
        yield f"fewer than {FEW} images to learn from: {', '.join(small)}"


def _untested(case: Case) -> Iterator[str]:
    dataset = case.dataset
    tested = set(dataset.labels[dataset.splits == "test"].tolist())
    if missing := [name for label, name in enumerate(dataset.classes) if label not in tested]:
        yield f"no test image of {', '.join(missing)}"


def _straddling(case: Case) -> Iterator[str]:
    dataset = case.dataset
    if dataset.grouped_by and (both := straddling(dataset.groups, dataset.splits)):
        are = "group" if len(both) == 1 else "groups"
        yield f"in more than one split: {len(both):,} {are} ({dataset.grouped_by}), for example {both[0]}: leaks"


def _nothing_to_see(case: Case) -> Iterator[str]:
    if _alike(case) == set(range(len(case.dataset.classes))):
        yield "all images that were looked at are alike, or show nothing: there is nothing to learn; export them again"


def _class_alike(case: Case) -> Iterator[str]:
    alike, classes = _alike(case), case.dataset.classes
    if 0 < len(alike) < len(classes):
        yield f"the images of {', '.join(classes[k] for k in sorted(alike))} are all alike, or show nothing"


def _alike(case: Case) -> set[int]:
    """Return the labels all of whose images are equal to within FLAT grey levels, or blank."""
    shown: dict[int, list[NDArray[np.uint8]]] = {}
    for one in case.found.seen:
        shown.setdefault(int(case.dataset.labels[one.row]), []).append(one.thumbnail)
    stacks = {label: np.stack(images) for label, images in shown.items() if len(images) > 1}
    return {k for k, s in stacks.items() if np.ptp(s, axis=0).max() <= FLAT or len(blank(s)[0]) == len(s)}


def _drawn(case: Case) -> Iterator[str]:
    drawn = sorted(one.row for one in case.found.seen if one.drawn)
    if 0 < len(drawn) < len(case.found.seen):
        yield (
            f"{len(drawn):,} of {len(case.found.seen):,} images have two values only, such as "
            f"{case.dataset.ids[drawn[0]]}: masks or drawings among the images, which tell the answer; take them out"
        )


def _left_out(case: Case) -> Iterator[str]:
    yield from (str(record) for record in case.dataset.left_out if record.images)


def _passed_over(case: Case) -> Iterator[str]:
    yield from (str(record) for record in case.dataset.left_out if not record.images)


def _positive(case: Case) -> Iterator[str]:
    dataset = case.dataset
    if dataset.positive_is_guess:
        yield (
            f"that {dataset.positive} is the positive class is a guess (by the alphabet): sensitivity and thresholds "
            f"are about it; POSITIVE={shlex.quote(dataset.classes[0])} chooses the other"
        )


def _equal_leak(case: Case) -> Iterator[str]:
    dataset = case.dataset
    pairs = [(a, b) for b, a in enumerate(equal_bytes(dataset).tolist()) if a != b]
    for what, column in (("two splits", dataset.splits), ("two classes", dataset.labels)):
        if found := [(a, b) for a, b in pairs if column[a] != column[b]]:
            names = " and ".join(dataset.ids[row] for row in found[0])
            yield f"{len(found):,} images are in {what} at once, byte for byte, such as {names}"


def _blank(case: Case) -> Iterator[str]:
    if case.found.seen and len(rows := blank(np.stack([one.thumbnail for one in case.found.seen]))[0]):
        example = case.dataset.ids[case.found.seen[int(rows[0])].row]
        yield f"{len(rows):,} of {len(case.found.seen):,} images are near-black or near-constant, such as {example}"


def _dim(case: Case) -> Iterator[str]:
    eight = [one for one in case.found.seen if one.facts.bits == 8 and one.facts.format != "DICOM"]
    dim = [one for one in eight if 0 < one.high - one.low <= DIM]
    if dim:
        span = f"{min(one.low for one in dim):.0f} to {max(one.high for one in dim):.0f}"
        yield (
            f"{len(dim):,} of {len(eight):,} 8-bit images use {DIM} of their 255 steps or fewer ({span}): "
            "masks, or values that were scaled by the wrong range"
        )


def _unused_bits(case: Case) -> Iterator[str]:
    deep = [one for one in case.found.seen if one.facts.bits in (12, 16) and one.low >= 0]
    low = [one for one in deep if one.high < 2 ** (one.facts.bits - UNUSED)]
    if low:
        used = int(max(one.high for one in low)).bit_length()
        yield (
            f"{len(low):,} of {len(deep):,} images of {low[0].facts.bits} bits use {used} of them: each grey image "
            "is stretched from its own minimum to its maximum, so absolute values (dose, density) are lost"
        )


def _inverted(case: Case) -> Iterator[str]:
    words = Counter(facts.photometric for facts in case.found.facts.values() if facts.format == "DICOM")
    if white := words["MONOCHROME1"]:
        yield (
            f"{white:,} of {words.total():,} DICOM images are MONOCHROME1 (0 is white) and are inverted; see on the "
            "sheet that they look like the others"
        )


def _frames(case: Case) -> Iterator[str]:
    if several := [row for row, facts in case.found.facts.items() if facts.frames > 1]:
        yield f"{len(several):,} files hold several frames and will be left out, such as {case.dataset.ids[several[0]]}"


def _small(case: Case) -> Iterator[str]:
    small = [row for row, facts in case.found.facts.items() if min(facts.width, facts.height) < case.size]
    if small:
        yield (
            f"{len(small):,} of {len(case.found.facts):,} images have a side below the network's {case.size} pixels "
            "and are enlarged"
        )


def _aspect(case: Case) -> Iterator[str]:
    wide = [row for row, f in case.found.facts.items() if _ratio(f.width, f.height) > STRETCHED]
    if wide and case.preprocess != "pad":
        does = {"squash": "distorts", "crop": "cuts"}[case.preprocess]
        yield (
            f"{len(wide):,} of {len(case.found.facts):,} images are more than {STRETCHED:g} times as long as wide, "
            f"and {case.preprocess} {does} them; PREPROCESS=pad does not"
        )


def _ratio(width: int, height: int) -> float:
    return max(width, height) / max(min(width, height), 1)


def _telling(case: Case) -> Iterator[str]:
    """Yield a property of the files that separates a class from the rest, which a head may learn instead of disease."""
    rows = sorted(case.found.facts)
    labels = case.dataset.labels[rows]
    for what, values in _columns(case, rows).items() if rows else ():
        areas = {k: _area(labels == k, values) for k in np.unique(labels).tolist()}
        worst = max(areas, key=lambda k: abs(areas[k] - 0.5))
        area = max(areas[worst], 1 - areas[worst])
        if area >= TELLING:
            yield (
                f"{what} alone tells {case.dataset.classes[worst]} from the rest with a ROC AUC of {area:.2f}: "
                "a head may learn that"
            )


def _columns(case: Case, rows: list[int]) -> dict[str, NDArray[np.float64]]:
    facts = [case.found.facts[row] for row in rows]
    columns = {
        "the number of pixels": [f.width * f.height for f in facts],
        "the aspect": [f.width / max(f.height, 1) for f in facts],
        "the number of channels": [f.channels for f in facts],
        "the bit depth": [f.bits for f in facts],
    }
    columns |= {f"being a {kind} file": [f.format == kind for f in facts] for kind in {f.format for f in facts}}
    return {what: np.asarray(values, np.float64) for what, values in columns.items()}


def _area(own: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve by ranks (Mann & Whitney), 0.5 where there is nothing to compare."""
    from scipy.stats import rankdata

    n, m = int(own.sum()), int((~own).sum())
    return float((rankdata(values)[own].sum() - n * (n + 1) / 2) / (n * m)) if min(n, m) >= FEW else 0.5


def _ungrouped(case: Case) -> Iterator[str]:
    if not case.dataset.grouped_by:
        folders = {image.rpartition("/")[0] for image in case.dataset.ids}
        places = set(zip(case.dataset.labels.tolist(), case.dataset.splits.tolist(), strict=True))
        inner = max(folders, key=lambda folder: (folder.count("/"), folder))
        are = f"; if folders such as {inner} are patients, a table with a column patient_id says so"
        yield (
            "no patients are known: images of one patient may lie on both sides of a split, and scores flatter"
            f"{are if len(folders) > 2 * len(places) else ''}"
        )


def _lopsided(case: Case) -> Iterator[str]:
    counts = np.bincount(case.dataset.labels, minlength=len(case.dataset.classes))
    if counts.max() > LOPSIDED * max(int(counts.min()), 1):
        names = [case.dataset.classes[int(k)] for k in (counts.argmax(), counts.argmin())]
        yield f"{counts.max():,} images of {names[0]}, {counts.min():,} of {names[1]}: look at PR AUC beside ROC AUC"


Rule = Callable[[Case], Iterator[str]]
DIAGNOSES: dict[str, tuple[Level, Rule]] = {
    "not-ready": ("fault", _unready),
    "disk-full": ("fault", _disk),
    "mostly-unreadable": ("fault", _mostly_unreadable),
    "class-of-one-group": ("fault", _lone_group),
    "nothing-to-see": ("fault", _nothing_to_see),
    "masks": ("fault", _drawn),
    "left-out": ("warning", _left_out),
    "positive-class": ("warning", _positive),
    "equal-images": ("warning", _equal_leak),
    "class-alike": ("warning", _class_alike),
    "unreadable": ("warning", _unreadable),
    "several-frames": ("warning", _frames),
    "few-images": ("warning", _few),
    "class-not-tested": ("warning", _untested),
    "straddling-group": ("warning", _straddling),
    "blank": ("warning", _blank),
    "dim": ("warning", _dim),
    "unused-bits": ("warning", _unused_bits),
    "monochrome1": ("warning", _inverted),
    "small": ("warning", _small),
    "aspect": ("warning", _aspect),
    "telling-files": ("warning", _telling),
    "disk-tight": ("warning", _tight_disk),
    "passed-over": ("note", _passed_over),
    "no-groups": ("note", _ungrouped),
    "lopsided": ("note", _lopsided),
}


def diagnose(case: Case) -> list[Diagnosis]:
    """Return what DIAGNOSES find, the worst first."""
    return [Diagnosis(name, level, words) for name, (level, rule) in DIAGNOSES.items() for words in rule(case)]
