"""Which columns of a table make subgroups, and of which values or bins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError, unknown
from models.metrics import in_bins

Texts = NDArray[np.str_]
MOST = 12  # values that are subgroups each; more numbers are put into bins
AGES = (18.0, 40.0, 65.0)  # bins of an age in years, where none were given
_AGE = re.compile(r"(^|_)age(_|$)")
_DICOM_AGE = re.compile(r"(\d{3})([DWMY])")  # 045Y
_COMMA = re.compile(r"^([+-]?\d+),(\d{1,2}|\d{4,})$")  # of decimals; 1,234 may be a thousand
_IN_A_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


class Levels(NamedTuple):
    """A column as subgroups: the one of each image in words, empty without a value, and their order."""

    words: Texts  # (n,)
    order: tuple[str, ...]


class ChosenColumns(NamedTuple):
    """The columns that make subgroups, and in words those that do not."""

    levels: Mapping[str, Levels]
    passed_over: tuple[str, ...]


def bins_in(text: str) -> dict[str, tuple[float, ...]]:
    """Return the edges of each column in "age:40,60 weight:70". Raises FirnError for anything else."""
    found: dict[str, tuple[float, ...]] = {}
    for part in text.split():
        name, _, numbers = part.rpartition(":")
        try:
            edges = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            edges = ()
        if not name or not edges or not np.isfinite(edges).all() or any(b <= a for a, b in pairwise(edges)):
            raise FirnError(f"expected BINS= to be columns with rising edges, such as age:18,65, got {part!r}")
        found[name.lower()] = edges
    return found


def subgroup_columns(
    values: Mapping[str, Texts], y: NDArray[np.int64], groups: Texts, bins: Mapping[str, Sequence[float]]
) -> ChosenColumns:
    """Return the subgroups that columns make of images: `values` {name: (n,)}, classes y (n,), groups (n,).

    At most MOST different values are a subgroup each. More numbers are put into the `bins` that were given for the
    column, else an age at AGES, where these part it, and all others at their tertiles. Passed over, with a remark, is a
    column with one value or too many words, one with a value of its own for each image or group, as file names and
    numbers of rows have, and one that tells the class. Raises UnknownName for bins of a column that is not there,
    FirnError for bins of one that holds no numbers.
    """
    for name in bins:
        if not values:
            raise FirnError(f"BINS= parts a column, {name}, and the images have none; COLUMNS= names a table of them")
        if name not in values:
            raise unknown("column of BINS=", name, values)
    levels, passed_over = {}, []
    for name, cells in values.items():
        found = _levels(name, cells, groups, bins.get(name))
        if isinstance(found, Levels) and _tells_class(found.words, y):
            found = "each of its values has images of one class only"
        if isinstance(found, Levels):
            levels[name] = found
        else:
            passed_over.append(f"{name}: {found}")
    return ChosenColumns(levels, tuple(passed_over))


def _levels(name: str, cells: Texts, groups: Texts, edges: Sequence[float] | None) -> Levels | str:
    """Return a column as subgroups, or why it makes none."""
    different, numbers = np.unique(cells[cells != ""]), numbers_in(cells)
    if edges is None:
        if len(different) < 2:
            return "one value only" if len(different) else "no value"
        if len(different) <= MOST:
            return Levels(cells, tuple(sorted(different.tolist(), key=_rank)))
        if not _AGE.search(name) and _is_bookkeeping(cells, numbers, groups):
            return "a value of its own for each image or group, as names and numbers of rows have"
    if numbers is None and edges:
        raise FirnError(f"BINS={name}: needs a column of numbers, and {name} holds {_first_word(different)!r}")
    if numbers is None:
        return f"{len(different):,} different values, more than {MOST}"
    if edges is None:
        of_age = _AGE.search(name) and len({*in_bins(numbers, AGES).tolist()} - {""}) > 1
        edges = AGES if of_age else _tertiles(numbers)
    names = in_bins([-np.inf, *edges], edges)
    words = in_bins(numbers, edges)
    there = tuple(word for word in names.tolist() if (words == word).any())
    return Levels(words, there) if len(there) > 1 else f"all values are {there[0] if there else 'missing'}"


def _first_word(cells: Texts) -> str:
    return next(str(cell) for cell in cells.tolist() if numbers_in(np.array([cell])) is None)


def _rank(cell: str) -> tuple[float, str]:
    """Return what sorts numbers by their size, and words by the alphabet behind them."""
    number = numbers_in(np.array([cell]))
    return (np.inf if number is None else float(number[0]), cell)


def numbers_in(cells: Texts) -> NDArray[np.float64] | None:
    """Return cells as numbers (n,), NaN where empty, 045Y (an age of DICOM) in years, 20,5 as 20.5; None for others."""
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells.tolist()):
        if cell:
            age = _DICOM_AGE.fullmatch(cell)
            try:
                found[row] = float(age[1]) / _IN_A_YEAR[age[2]] if age else float(_COMMA.sub(r"\1.\2", cell))
            except ValueError:
                return None
    return None if np.isinf(found).any() else found


def _tertiles(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the edges of three parts of equal size as far as ties allow, rounded to be read."""
    edges = np.nanquantile(numbers, [1 / 3, 2 / 3], method="higher")
    return tuple(dict.fromkeys(float(f"{edge:.4g}") for edge in edges))


def _is_bookkeeping(cells: Texts, numbers: NDArray[np.float64] | None, groups: Texts) -> bool:
    """Tell whether a column of names or whole numbers has a value of its own for each image, or for each group."""
    given = cells != ""
    whole = numbers is None or bool((numbers[given] == np.rint(numbers[given])).all())
    different = len(np.unique(cells[given]))
    held = len(np.unique(groups[given]))
    return whole and (different == given.sum() or different == held == len(np.unique(_pairs(cells, groups)[given])))


def _pairs(cells: Texts, groups: Texts) -> NDArray[np.int64]:
    """Return the number of each pair of a value and a group, (n,)."""
    values, names = (np.unique(column, return_inverse=True)[1] for column in (cells, groups))
    return np.asarray(values * (int(names.max()) + 1) + names)


def _tells_class(words: Texts, y: NDArray[np.int64]) -> bool:
    return all(len(np.unique(y[words == word])) < 2 for word in np.unique(words) if word)
