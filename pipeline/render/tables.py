"""CSV that a spreadsheet opens without harm."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "＝",
    "＋",
    "－",
    "＠",
)  # what makes a spreadsheet take a cell for a formula


def csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as CSV in UTF-8, a line each.

    A cell that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, "CSV Injection"); numbers
    are left alone.
    """
    return "".join(_line([_cell(cell) for cell in row]) for row in rows).encode()


def _line(cells: list[str]) -> str:
    """Return one line. A writer quotes what its own line end is made of: else a lone CR would begin another line."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
