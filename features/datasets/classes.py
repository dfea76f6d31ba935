"""Names of classes: their order, which of two is the positive one, and spellings that look like one class twice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from features.datasets.dataset import Dataset
from features.errors import BadDataset, unknown

_MISSING = re.compile(r"(?i)|nan|n/?a|#n/a|n\.a\.|<na>|nat|none|null|nil|missing")
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
    """Tell whether nothing in the names of two classes says which one is the finding."""
    if len(classes) != 2 or all(_number(name) is not None for name in classes):
        return False
    return _finding(classes[0], classes[1]) == _finding(classes[1], classes[0])


def with_positive(dataset: Dataset, positive: str) -> Dataset:
    """Return the data set with `positive` as label 1; empty keeps the order. Raises BadDataset, UnknownName."""
    if not positive:
        return dataset
    if positive not in dataset.classes:
        raise unknown("class", positive, dataset.classes)
    if len(dataset.classes) != 2:
        raise BadDataset(f"POSITIVE= chooses between two classes; {dataset.name} has {len(dataset.classes)}: leave it")
    if dataset.classes[1] == positive:
        return replace(dataset, positive_is_guess=False)
    classes = (dataset.classes[1], dataset.classes[0])
    return replace(dataset, classes=classes, labels=1 - dataset.labels, positive_is_guess=False)


def same_class(name: str) -> str:
    """Return the key under which two spellings of one class are equal: NFC, casefold, blanks, 1 and 1.0."""
    plain = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", unicodedata.normalize("NFC", name).casefold().strip())
    whole = re.fullmatch(r"([+-]?\d+)(\.0*)?", plain)
    return str(int(whole[1])) if whole else plain


def is_missing(cell: str) -> bool:
    """Tell whether a cell of a table says that there is no value: empty, nan, NA, None, null, ..."""
    return _MISSING.fullmatch(cell.strip()) is not None


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
