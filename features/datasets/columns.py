"""Further columns of a data set (sex, age, site, device), its own and those of a table beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset, is_missing
from features.datasets.table import read_table
from features.errors import BadDataset


class Columns(NamedTuple):
    """Values by image, and what is to be said of them."""

    ids: Sequence[str]  # (n,)
    values: Mapping[str, NDArray[np.str_]]  # (n,) each; empty where there is none
    remarks: tuple[str, ...] = ()


def further_columns(dataset: Dataset, table: str = "") -> Columns:
    """Return the columns of a data set that have no role, and those of a table of its images, which win.

    The table names images by a column `path` (or file, image, ...): by their id, or by the end of it where that means
    one image. Raises BadDataset, with the line, for a name of several images and for an image with two values.
    """
    if not table:
        return Columns(dataset.ids, dataset.columns)
    read, known = read_table(Path(table)), _Ends(dataset.ids)
    if (at := read.roles.get("path")) is None:
        raise BadDataset(f"{table}, line 1: no column 'path' in {','.join(read.header)!r}; COLUMNS= needs one")
    others = read.others()
    values = {name: [""] * len(dataset.ids) for name in others}
    strange, told = 0, dict[int, list[str]]()
    for line, cells in read.rows:
        own = [cells[place] for place in others.values()]
        found = known.find(cells[at])
        if len(found) > 1 or any(told.setdefault(row, own) != own for row in found):
            what = "means several images" if len(found) > 1 else "has other values on an earlier line"
            raise BadDataset(f"{table}, line {line}: {cells[at]!r} {what} of {dataset.name}; name each image once")
        strange += not found
        for row in found:
            for name, cell in zip(others, own, strict=True):
                values[name][row] = "" if is_missing(cell) else cell
    if not told:
        example = f"{read.rows[0][1][at]!r} for {dataset.ids[0]!r}" if read.rows else "no line"
        raise BadDataset(f"{table} names no image of {dataset.name}: {example}; expected the ids of its images")
    lacking = len(dataset.ids) - len(told)
    counts = {"lines that are no image of the data set": strange, "images without a line": lacking}
    remarks = tuple(f"{Path(table).name}: {what}: {count:,}" for what, count in counts.items() if count)
    given = {name: np.array(column, np.str_) for name, column in values.items()}
    return Columns(dataset.ids, {**dataset.columns, **given}, remarks)


class _Ends:
    """Images by the ends of their ids."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = ids
        self._by_name: dict[str, list[int]] = {}
        for row, image in enumerate(ids):
            self._by_name.setdefault(image.rpartition("/")[2], []).append(row)

    def find(self, text: str) -> list[int]:
        """Return the rows of the image of that id, else of those whose id ends so."""
        name = text.replace("\\", "/").removeprefix("./")
        rows = self._by_name.get(name.rpartition("/")[2], [])
        whole = [row for row in rows if self._ids[row] == name]
        return whole or [row for row in rows if f"/{self._ids[row]}".endswith(f"/{name}")]
