"""The label of each row of a table: a column of classes, or one finding chosen by TARGET=."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from features.datasets.classes import is_missing
from features.datasets.table import LAYOUT, Table, plain_name
from features.errors import BadDataset, command, unknown

_INDICATOR = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}
_UNCERTAIN = {"-1", "-1.0"}  # CheXpert
_SEPARATORS = ("|", ";", ",", "/", "+", "&")
_FEW = 10  # numbers with decimals that may be names of classes


def read_labels(table: Table, target: str = "") -> list[str]:
    """Return the label of each row, empty where it is missing.

    `target` names a column, or one of the findings in the column of labels; an image is then of the class `target` or
    `no <target>`. Raises BadDataset for several findings of an image without a target, and for numbers with decimals.
    """
    if target and plain_name(target) in table.header:
        labels = _of_column(table, target)
    elif "label" in table.roles:
        labels = _of_findings(table, table.roles["label"], target)
    elif target:
        raise unknown("finding", target, _indicators(table))
    else:
        labels = _of_indicators(table)
    _refuse_numbers(table, labels)
    return labels


def has_labels(table: Table) -> bool:
    """Tell whether a table says something of images: a column of them, and a label or a column for each finding."""
    return "path" in table.roles and ("label" in table.roles or bool(_indicators(table)))


def _column(table: Table, at: int) -> list[str]:
    """Return the cells of a column, in NFC, empty where they are missing."""
    cells = (unicodedata.normalize("NFC", row[at]) for _, row in table.rows)
    return ["" if is_missing(cell) else cell for cell in cells]


def _of_column(table: Table, target: str) -> list[str]:
    at = table.header.index(plain_name(target))
    cells = _column(table, at)
    if not {cell.lower() for cell in cells} - {""} <= _INDICATOR.keys() | _UNCERTAIN:
        return _of_findings(table, at, "")
    names = {1: target, 0: f"no {target}", None: ""}
    return [names[_INDICATOR.get(cell.lower())] for cell in cells]


def _of_findings(table: Table, at: int, target: str) -> list[str]:
    """Return the labels of a column, or whether the finding `target` is among them."""
    cells = _column(table, at)
    alone = {cell for cell in cells if not any(mark in cell for mark in "|[")}
    parts = {cell: _parts(cell, alone) for cell in set(cells)}
    known = Counter(part for cell in cells for part in parts[cell])
    if target:
        if target not in known:
            raise unknown("finding", target, known)
        return [(target if target in parts[cell] else f"no {target}") if cell else "" for cell in cells]
    for (line, _), cell in zip(table.rows, cells, strict=True):
        if len(parts[cell]) > 1:
            example = command("doctor", DATASET=table.path, TARGET=known.most_common(2)[-1][0])
            raise BadDataset(
                f"{table.path}, line {line}: several findings of one image ({cell}), and Firn learns one; choose it by "
                f"TARGET=, such as {example}; there are {', '.join(sorted(known))}"
            )
    return ["".join(parts[cell]) for cell in cells]


def _parts(cell: str, alone: set[str]) -> list[str]:
    """Return the findings in a cell: `a|b`, `['a', 'b']`, or `a;b` where a and b are labels elsewhere."""
    if cell.startswith("[") and cell.endswith("]"):
        return sorted({part.strip() for part in re.split(r"""['",]+""", cell[1:-1]) if part.strip()})
    for mark in _SEPARATORS:
        parts = [part.strip() for part in cell.split(mark)]
        if len(parts) > 1 and (mark == "|" or alone.issuperset(parts)):
            return sorted(set(parts))
    return [cell] if cell else []


def _indicators(table: Table) -> list[str]:
    """Return the columns that hold 0 and 1 (or -1, or nothing): one finding each."""
    found = []
    for name, at in table.others().items():
        values = {row[at].lower() for _, row in table.rows}
        if values & _INDICATOR.keys() and all(v in _INDICATOR or v in _UNCERTAIN or is_missing(v) for v in values):
            found.append(name)
    return found


def _of_indicators(table: Table) -> list[str]:
    """Return the name of the one finding of each row. Raises BadDataset where a row has another number of them."""
    names = _indicators(table)
    at = [table.header.index(name) for name in names]
    found = [[n for n, k in zip(names, at, strict=True) if _INDICATOR.get(row[k].lower())] for _, row in table.rows]
    if len(names) < 2 or any(len(own) != 1 for own in found):
        example = command("doctor", DATASET=table.path, TARGET=names[-1]) if names else ""
        choose = f"; choose a finding, such as {example}; there are {', '.join(names)}" if names else ""
        raise BadDataset(
            f"{table.path}, line 1: no column 'label' in {','.join(table.header)!r}; expected {LAYOUT}{choose}"
        )
    return [own[0] for own in found]


def _refuse_numbers(table: Table, labels: list[str]) -> None:
    """Raise BadDataset where the labels are many numbers with decimals: a quantity, and not a class."""
    values = set(labels) - {""}
    decimal = [value for value in values if re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*", value)]
    if decimal and len(values) > _FEW and all(re.fullmatch(r"[+-]?\d*\.?\d*(e[+-]?\d+)?", v.lower()) for v in values):
        raise BadDataset(
            f"{table.path}: the labels are {len(values):,} different numbers with decimals, such as {min(decimal)}; "
            "predicting a number is a regression, which Firn does not do: make classes of them"
        )
