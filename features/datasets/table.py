"""Tables of text as people save them: comma, semicolon or tab, UTF-8 or UTF-16, and columns by any of their names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.datasets.splits import SPLIT_NAMES
from features.errors import BadDataset

if TYPE_CHECKING:
    from _csv import Reader

TABLES = (".csv", ".tsv", ".tab")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".parquet")
LAYOUT = "path,label[,split][,group][,others]"
_NAMES = {  # role -> names of its column, the first that is there is taken
    "path": "path image file filename file_name image_path img_path file_path filepath image_name img imagename "
    "image_file image_id imageid image_index",
    "label": "label class target diagnosis dx finding_labels category labels label_name class_name",
    "group": "group patient patient_id patientid subject subject_id subjectid participant participant_id case_id "
    "lesion_id",
    "split": "split set fold subset partition",
}


@dataclass(frozen=True)
class Table:
    """The rows of a table below its header."""

    path: Path
    header: tuple[str, ...]  # names in lower case, words joined by _; empty for the number of a row
    rows: list[tuple[int, list[str]]]  # line and cells, stripped of blanks at either end
    roles: dict[str, int]  # role -> column

    def others(self) -> dict[str, int]:
        """Return the columns that have no role, by name."""
        return {name: at for at, name in enumerate(self.header) if name and at not in self.roles.values()}


def read_table(path: Path) -> Table:
    """Read a table whole. Raises BadDataset, with the line, where it is none."""
    header, reader = _opened(path)
    rows = []
    try:
        for cells in reader:
            if len(cells) not in (0, len(header)):
                came = f"{len(cells)} cells for the {len(header)} columns {','.join(header)}"
                raise BadDataset(f"{path}, line {reader.line_num}: {came}; quote a cell that holds a comma")
            if any(cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise BadDataset(f"{path}, line {reader.line_num}: {error}; expected {LAYOUT} with commas between") from None
    return Table(path, header, rows, _roles(header, rows))


def _roles(header: Sequence[str], rows: list[tuple[int, list[str]]]) -> dict[str, int]:
    """Return the column of each role that is there; a `fold` or `set` of other words than splits is none."""
    found = {role: next((header.index(n) for n in names.split() if n in header), -1) for role, names in _NAMES.items()}
    if found["path"] < 0 and found["label"] >= 0:  # RSNA: a patient has one image, called after him
        found["path"] = header.index("patientid") if "patientid" in header else -1
    at = found["split"]
    if at >= 0 and header[at] != "split" and not {cells[at].lower() for _, cells in rows} <= SPLIT_NAMES.keys():
        del found["split"]
    return {role: at for role, at in found.items() if at >= 0}


def _opened(path: Path) -> tuple[tuple[str, ...], Reader]:
    """Return the header and a reader that stands behind it."""
    text = _text(path)
    first, start = text.partition("\n")[0], 0
    if told := re.fullmatch(r"sep=(.)\s*", first):  # Excel's own first line
        start, first = len(first) + 1, text[len(first) + 1 :].partition("\n")[0]
    delimiter = told[1] if told else max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True)
    try:
        header = tuple(plain_name(cell) for cell in next(reader, []))
    except csv.Error as error:
        raise BadDataset(f"{path}, line 1: {error}; expected {LAYOUT} with commas between") from None
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise BadDataset(f"{path}, line 1: column {twice[0]!r} is named twice; rename one")
    return header, reader


def plain_name(cell: str) -> str:
    """Return the name of a column in lower case, its words joined by _; empty for the number of a row (pandas)."""
    name = "_".join(re.findall(r"[\w#+.%]+", cell.strip().lower()))
    return "" if name in ("unnamed_0", "unnamed:_0") else name


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadDataset(f"{path} cannot be read ({error.strerror}); mend it and rerun") from None
    wide = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(data[:2])
    narrow = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be" if data[:1] == b"\0" else "utf-8-sig"
    try:
        return data.decode(wide or narrow)
    except UnicodeDecodeError as error:
        raise BadDataset(f"{path} is no UTF-8 text ({error.reason}); save it as CSV UTF-8") from None
