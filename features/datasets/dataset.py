"""The table of images that every source of data is reduced to, and its classes: order, spelling, the positive one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from features.errors import BadDataset, unknown

SPLITS = ("train", "val", "test")


class Stamps(NamedTuple):
    """What the file system says of each image without reading it; equal stamps mean equal bytes."""

    size: NDArray[np.int64]  # (n,) bytes
    mtime: NDArray[np.int64]  # (n,) ns
    ctime: NDArray[np.int64]  # (n,) ns


class Source(Protocol):
    """Where the bytes of the images come from."""

    @property
    def where(self) -> str:
        """Return the folder or file that a person would look into."""

    def read(self, image: str) -> bytes:
        """Return the encoded bytes of one image (JPEG, PNG, ..., or `.npy` for a row of an array)."""

    def stamps(self, images: list[str]) -> Stamps:
        """Return size and times of each image, for noticing change without reading."""


@dataclass(frozen=True)
class LeftOut:
    """Files or rows that a data set does not use, and why."""

    reason: str  # "masks or annotations beside their image", ...
    count: int
    examples: tuple[str, ...]  # a few of them
    images: bool = False  # whether they are images, so that a reader may have meant them

    def __str__(self) -> str:
        """Return a line for the terminal."""
        more = ", ..." if self.count > len(self.examples) else ""
        return f"left out {self.count:,}: {self.reason} ({', '.join(self.examples)}{more})"


@dataclass(frozen=True)
class Dataset:
    """Images with label, split and group; row i of every column is image `ids[i]`, and ids are sorted."""

    name: str  # the folder under artifacts/, as `storage.slug` makes it
    classes: tuple[str, ...]  # label k is classes[k]
    ids: list[str]  # (n,) path relative to the root, '/' as separator; unique and sorted
    labels: NDArray[np.int64]  # (n,)
    splits: NDArray[np.str_]  # (n,) one of SPLITS
    groups: NDArray[np.str_]  # (n,) patient, slide or source patch; the id itself where nothing is known
    source: Source
    grouped_by: str = ""  # what a group is ("patient"); empty where none is known
    split_by: str = "publisher"  # "publisher", or how Firn made the split
    label_views: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # view -> class -> merged class
    note: str = ""  # licence, citation, "synthetic"
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)  # (n,) each: age, sex, site, ...
    left_out: tuple[LeftOut, ...] = ()
    positive_is_guess: bool = False  # two classes, and no name says which of them is the finding
    findings: tuple[str, ...] = ()  # several per image: what the letters of the classes are about, see `findings`

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @property
    def positive(self) -> str:
        """Return the class of label 1, whose sensitivity is reported; empty unless there are two classes."""
        return self.classes[1] if len(self.classes) == 2 and not self.findings else ""


def left_out(reason: str, names: Iterable[str], *, images: bool = False) -> tuple[LeftOut, ...]:
    """Return one record of what is left out for a reason; none where `names` is empty."""
    every = sorted(names)
    return (LeftOut(reason, len(every), tuple(every[:3]), images),) if every else ()


_MISSING = re.compile(r"(?i)|nan|n/?a|#n/a|n\.a\.|<na>|nat|none|null|nil|missing|\?+|#(ref|value|div/0|num)!|#name\?")
_HEALTHY = frozenset(  # whole names of a class without the finding
    re.findall(
        r"\w+",
        "normal negative neg benign healthy control controls ctrl no_finding no_findings nofinding nevus nevi naevus "
        "nv clear absent absence unaffected uninfected uninvolved unremarkable undiseased nonpathological nondemented "
        "noncancer noncancerous nonmalignant hc cn wildtype false no not_detected",
    )
)
_WORD = re.compile(r"normal|negative|neg|benign|healthy|controls?|nevus|nevi|naevus|unaffected|uninfected")
_NOT = ("without", "non", "not", "no", "un")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphen, zero width, byte order mark: of web pages
_DASH = re.compile("[\u2010-\u2015\u2212]")


def class_order(names: Iterable[str], where: object) -> tuple[str, ...]:
    """Return the classes in the order of their labels: numbers by size, else by the alphabet.

    Of exactly two the negative (healthy) one comes first, so that label 1 is the finding. Raises BadDataset, with
    `where` they are from, where two names differ only by case, blanks or the way a number is written.
    """
    classes = sorted(set(names))
    _require_distinct(classes, where)
    if all(_number(name) is not None for name in classes):
        return tuple(sorted(classes, key=lambda name: _number(name) or 0.0))
    if len(classes) == 2:
        first, second = classes
        classes.sort(key=lambda name: _finding(name, second if name == first else first))
    return tuple(classes)


def is_guess(classes: tuple[str, ...]) -> bool:
    """Tell whether nothing in the names of two classes says which one is the finding: not 0 and 1, but 1 and 2."""
    if len(classes) != 2:
        return False
    numbers = [number for name in classes if (number := _number(name)) is not None]
    if len(numbers) == 2:
        return min(numbers) > 0  # 1 is the finding for some, and the control for others
    return _finding(classes[0], classes[1]) == _finding(classes[1], classes[0])


def with_positive(dataset: Dataset, positive: str) -> Dataset:
    """Return the data set with `positive` as label 1; empty keeps the order. Raises BadDataset, UnknownName."""
    if not positive:
        return dataset
    if dataset.findings:
        raise BadDataset(f"POSITIVE= chooses between two classes; {dataset.name} has several findings: leave it")
    if positive not in dataset.classes:
        raise unknown("class", positive, dataset.classes)
    if len(dataset.classes) != 2:
        raise BadDataset(f"POSITIVE= chooses between two classes; {dataset.name} has {len(dataset.classes)}: leave it")
    if dataset.classes[1] == positive:
        return replace(dataset, positive_is_guess=False)
    classes = (dataset.classes[1], dataset.classes[0])
    return replace(dataset, classes=classes, labels=1 - dataset.labels, positive_is_guess=False)


def same_class(name: str) -> str:
    """Return the key under which spellings of one class are equal: case, blanks, dashes, unseen letters, 1 and 1.0."""
    plain = _DASH.sub("-", unicodedata.normalize("NFKC", _UNSEEN.sub("", name))).casefold().strip()
    plain = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", plain)
    whole = re.fullmatch(r"([+-]?\d+)(\.0*)?", plain)
    return str(int(whole[1])) if whole else plain


def is_missing(cell: str) -> bool:
    """Tell whether a cell of a table says that there is no value: empty, nan, NA, None, null, ..."""
    return _MISSING.fullmatch(cell.strip()) is not None


def is_healthy(name: str) -> bool:
    """Tell whether a name says that nothing was found: "No Finding", "normal", ..."""
    return _plain(name) in _HEALTHY


def _require_distinct(classes: list[str], where: object) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(same_class(name), name)
        if other != name:
            raise BadDataset(f"{where}: {other!r} and {name!r} look like one class spelled twice; write them alike")


def _number(name: str) -> float | None:
    return float(name) if _NUMBER.fullmatch(name.strip()) else None


def _finding(name: str, other: str) -> int:
    """Rank a class among two: 0 healthy by its whole name, 1 by its negation or a word, 2 unknown, 3 a finding."""
    if sign := re.fullmatch(r"([+-])(ve)?", _DASH.sub("-", name.strip().lower())):
        return 0 if sign[1] == "-" else 3
    plain, rest = _plain(name), _plain(other)
    words = plain.split("_")
    if plain in _HEALTHY:
        return 0
    for word in _NOT:
        negated = plain.removeprefix(word).strip("_")
        if plain.startswith(word) and (words[0] == word or negated == rest):
            return 3 if negated in _HEALTHY or _WORD.fullmatch(negated.split("_")[0]) else 1
    if words[-1] == "n" and len(words) > 1 and rest.split("_")[:-1] == words[:-1]:
        return 1  # colon_n beside colon_aca
    if any(map(_WORD.fullmatch, words)) or words[-1] == "free" or "no_finding" in plain:
        return 1
    return 3 if {"positive", "pos", "malignant"} & set(words) else 2


def _plain(name: str) -> str:
    """Return the words of a name in lower case, joined by _; `NonTumor` has two, the 0 of `0. Normal` is none."""
    words = re.findall(r"[^\W\d_]+|\d+", _CAMEL.sub("_", unicodedata.normalize("NFC", name)).lower())
    letters = next((i for i, word in enumerate(words) if not word.isdigit()), 0)
    return "_".join(words[letters:])
