"""Tables as people save them: columns by their names, labels, and findings of which one is chosen."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.datasets.dataset import class_order, is_healthy, is_missing
from features.datasets.findings import ABSENT, MISSING, PRESENT
from features.datasets.splits import SPLIT_NAMES
from features.errors import BadDataset, command, listed, unknown

if TYPE_CHECKING:
    from _csv import Reader


TABLES = (".csv", ".tsv", ".tab")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".parquet")
LAYOUT = "path,label[,split][,group][,others]"
_NAMES = {  # role -> names of its column, the first that is there is taken
    "path": "path image file filename file_name image_path img_path file_path filepath image_name img imagename "
    "image_file image_id imageid image_index image_filename x_ray_image_name id_code",
    "label": "label class target diagnosis dx finding_labels category labels label_name class_name ground_truth gt",
    "group": "group patient patient_id patientid subject subject_id subjectid participant participant_id "
    "patient_number patient_no patient_name mrn pid person_id case_id lesion_id slide slide_id",
    "split": "split set fold subset partition",
}


Rows = list[tuple[int, list[str]]]  # line and cells, stripped of blanks at either end


@dataclass(frozen=True)
class Table:
    """The rows of a table below its header."""

    path: Path
    header: tuple[str, ...]  # names in lower case, words joined by _; empty for the number of a row
    rows: Rows
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
    roles = _roles(header, rows)
    if "split" not in roles and (named := _named_splits(header, rows, roles)):
        if len(named) > 1:
            both = " and ".join(header[at] for at in named)
            raise BadDataset(f"{path}, line 1: the columns {both} all name splits; call the one that is meant split")
        roles["split"] = named[0]
    for line, cells in rows if "group" in roles else ():
        if _ROUNDED.fullmatch(cells[roles["group"]]):
            raise BadDataset(
                f"{path}, line {line}: {header[roles['group']]} {cells[roles['group']]} was rounded by a spreadsheet, "
                "which makes several patients one; save the table again with that column as text"
            )
    return Table(path, header, rows, roles)


def _roles(header: Sequence[str], rows: Rows) -> dict[str, int]:
    """Return the column of each role that is there; a `fold` or `set` of other words than splits is none."""
    found = {role: next((header.index(n) for n in names.split() if n in header), -1) for role, names in _NAMES.items()}
    if found["path"] < 0 and found["label"] >= 0:  # RSNA: a patient has one image, called after him
        found["path"] = header.index("patientid") if "patientid" in header else -1
    at = found["split"]
    if at >= 0 and header[at] != "split" and SPLIT_NAMES.keys().isdisjoint(cells[at].lower() for _, cells in rows):
        del found["split"]
    return {role: at for role, at in found.items() if at >= 0}


def rivals(table: Table, role: str) -> list[str]:
    """Return the other columns with names of a role which part the rows in another way than the one that is taken.

    Of groups those alone that a taken group may part: images of one patient, where the groups are studies.
    """
    found = []
    for name in _NAMES[role].split() if role in table.roles else ():
        if name in table.header and (at := table.header.index(name)) not in table.roles.values():
            taken = {(cells[at], cells[table.roles[role]]) for _, cells in table.rows if not is_missing(cells[at])}
            ours, theirs = {one for _, one in taken}, {other for other, _ in taken}
            if len(taken) > len(theirs) or (role != "group" and len(taken) > len(ours)):
                found.append(name)
    return found


def _named_splits(header: Sequence[str], rows: Rows, roles: dict[str, int]) -> list[int]:
    """Return the columns that name splits whatever they are called (`phase`, `dataset_type`).

    A column such as `is_valid` of 0 and 1 is written as splits first: 1 is val there, and 0 is train.
    """
    found = []
    for at, name in enumerate(header):
        first = rows[0][1][at].lower() if rows else ""
        if at in roles.values() or first not in SPLIT_NAMES.keys() | _INDICATOR.keys():
            continue  # most columns are told by their first cell
        values = {cells[at].lower() for _, cells in rows}
        if (asked := SPLIT_NAMES.get(name.removeprefix("is_"))) and name.startswith("is_") and values <= {*_INDICATOR}:
            names = {1: asked, 0: "train" if asked != "train" else "test"}
            for _, cells in rows:
                cells[at] = names[_INDICATOR[cells[at].lower()]]
            found.append(at)
        elif values <= SPLIT_NAMES.keys() and len({SPLIT_NAMES[value] for value in values}) > 1:
            found.append(at)
    return found


def _opened(path: Path) -> tuple[tuple[str, ...], Reader]:
    """Return the header and a reader that stands behind it."""
    text = _text(path)
    first, start = text.partition("\n")[0], 0
    if told := re.fullmatch(r"sep=(.)\s*", first):  # Excel's own first line
        start, first = len(first) + 1, text[len(first) + 1 :].partition("\n")[0]
    delimiter = told[1] if told else max(",;\t|", key=re.sub(r'"[^"]*"', "", first).count)
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


_INDICATOR = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}
_UNCERTAIN = {"-1", "-1.0"}  # CheXpert
_DEVICE = re.compile(r"device|line|tube|pacemaker")  # CheXpert: an image without findings may show one
_SEPARATORS = ("|", ";", ",", "/", "+", "&", " and ")
_ALWAYS = "|;"  # in no name of a class
_ROUNDED = re.compile(r"\d(\.\d+)?E\+\d+")  # Excel's 1.23457E+12
_OF_THE_IMAGE = re.compile(  # columns of 0 and 1 that are no finding: who was examined, and how
    r"(is_)?(fe)?males?|(is_)?sex|gender|(is_)?(frontal|lateral|left|right|portable|ap|pa)|view|laterality|fold|set"
    r"|(is_)?(in|out)patient|age(_.*)?|deceased|died|death|smok(er|ing)|duplicate|quality"
)
_FEW = 10  # values of a column, whatever they are, that may be names of classes
_GRADES = 24  # whole numbers that may be: more are an age, a year, a code
_ROWS = 3  # of each value, on average, below which a column names the images and not their classes
_DAY = re.compile(  # 2021-03-01, 01.03.21, 3/1/2021 10:15, 01-Mar-2021, 20210301
    r"(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./ ](\d{1,2}|[A-Za-z]{3,9})[-./ ](\d{4}|\d{2})"
    r"|(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01]))([T ]\d{1,2}:\d{2}.*)?"
)


def read_labels(table: Table, target: str = "", *, uncertain: str = MISSING) -> list[str]:
    """Return the label of each row, empty where it is missing.

    `target` names a column, or one of the findings in the column of labels; an image is then of the class `target` or
    `no <target>`, and an `uncertain` label (-1) is missing, or of either. Raises BadDataset for several findings of an
    image without a target, and for numbers with decimals.
    """
    if target and plain_name(target) in table.header:
        labels = _of_column(table, target, uncertain)
    elif "label" in table.roles:
        labels = _of_findings(table, table.roles["label"], target)
    elif target:
        raise unknown("finding", target, _indicators(table))
    else:
        labels = _of_indicators(table)
    _refuse_numbers(table, labels)
    return labels


def refuse_no_classes(table: Table, target: str, labels: Sequence[str], *, findings: bool = False) -> None:
    """Raise BadDataset where labels, or the names of findings, are hardly any: dates, many numbers, one a row or so."""
    seen = Counter(labels)
    del seen[""]
    if not (what := _what_they_are(list(seen), len(table.rows), 1 if findings else _ROWS)):
        return
    taken = plain_name(target) or (table.header[table.roles["label"]] if "label" in table.roles else "")
    where = f"the column {taken} was" if taken else "the columns of 0 and 1 were"
    asked = {"TARGET": target} if target else {}
    kind = "findings" if findings else "classes"
    anyway = command("doctor", DATASET=table.path, **asked, TASK=kind)
    others = [table.header[table.roles["label"]]] if target and "label" in table.roles else []
    others = [name for name in [*others, *table.others()] if name != taken and _may_be_label(table, name)]
    example = f", such as {command('doctor', DATASET=table.path, TARGET=others[0])}" if others else ""
    raise BadDataset(
        f"{table.path}: {where} taken for the labels and holds {what}, such as {min(seen):.60}, hardly {kind}; "
        f"TARGET= names another column{example}; if they are: {anyway}"
    )


def _what_they_are(values: Sequence[str], rows: int, each: int) -> str:
    """Say what the different values of a column are, where they are hardly classes; empty where they may well be."""
    number = len(values)
    if number > 2 and all(map(_DAY.fullmatch, values)):
        return f"{number:,} dates"
    if number > _GRADES and all(re.fullmatch(r"[+-]?\d+(\.0*)?", value) for value in values):
        return f"{number:,} different whole numbers (an age, a year, a code)"
    return f"{number:,} different values in {rows:,} rows (names, free text)" if number > max(_FEW, rows / each) else ""


def _may_be_label(table: Table, name: str) -> bool:
    """Tell whether a column has two values to ten, with three rows of each on average."""
    values = {cell for cell in _column(table, table.header.index(name)) if cell}
    return 2 <= len(values) <= min(_FEW, len(table.rows) / _ROWS)


def has_labels(table: Table) -> bool:
    """Tell whether a table says something of images: a column of them, and a label or a column for each finding."""
    return "path" in table.roles and ("label" in table.roles or bool(_indicators(table)))


def _column(table: Table, at: int) -> list[str]:
    """Return the cells of a column, in NFC and on one line, empty where they are missing."""
    cells = (re.sub(r"\s*[\r\n\t]\s*", " ", unicodedata.normalize("NFC", row[at])) for _, row in table.rows)
    return ["" if is_missing(cell) else cell for cell in cells]


def several_findings(table: Table) -> bool:
    """Tell whether images have several findings each: in the column of labels, or in a column for each finding."""
    if "label" in table.roles:
        return any(len(parts) > 1 for parts in _findings_in(table))
    at = list(_indicators(table).values())
    return len(at) > 1 and any(sum(_INDICATOR.get(row[k].lower()) == 1 for k in at) != 1 for _, row in table.rows)


def read_findings(table: Table, uncertain: str = MISSING) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the findings, and a pattern of their labels for each row, empty where it has no label.

    In a column of labels the findings of a cell (`a|b`, `['a', 'b']`) are present and all others absent. Of columns of
    1, 0, -1 and blank a blank is missing, and so is -1 (CheXpert's uncertain) unless `uncertain` says what it counts
    as; where a column such as `No Finding` is 1, blanks are absent, but for devices. Raises BadDataset for no findings.
    """
    if "label" in table.roles:
        names, patterns = _from_labels(table)
    else:
        names, patterns = _from_indicators(table, uncertain)
    if not names:
        raise BadDataset(
            f"{table.path}: no findings; expected {LAYOUT} with a label such as a|b, or columns of 0 and 1"
        )
    return names, patterns


def _from_labels(table: Table) -> tuple[tuple[str, ...], list[str]]:
    cells = _findings_in(table)
    names = class_order((part for parts in cells for part in parts if not is_healthy(part)), table.path)
    known = {tuple(parts): "".join(PRESENT if name in parts else ABSENT for name in names) for parts in cells if parts}
    return names, [known[tuple(parts)] if parts else "" for parts in cells]


def _from_indicators(table: Table, uncertain: str) -> tuple[tuple[str, ...], list[str]]:
    columns = _indicators(table)
    healthy = [at for name, at in columns.items() if is_healthy(name)]
    names = tuple(name for name in columns if not is_healthy(name))
    letters = {1: PRESENT, 0: ABSENT, -1: uncertain}
    patterns = []
    for _, row in table.rows:
        nothing = any(_INDICATOR.get(row[at].lower()) == 1 for at in healthy)
        blank = {name: ABSENT if nothing and not _DEVICE.search(name) else MISSING for name in names}
        cells = {name: _indicator(row[columns[name]]) for name in names}
        found = [blank[name] if cell is None else letters[cell] for name, cell in cells.items()]
        patterns.append("" if set(found) == {MISSING} else "".join(found))
    return names, patterns


def _indicator(cell: str) -> int | None:
    return -1 if cell in _UNCERTAIN else _INDICATOR.get(cell.lower())


def _of_column(table: Table, target: str, uncertain: str) -> list[str]:
    at = table.header.index(plain_name(target))
    cells = _column(table, at)
    if not {cell.lower() for cell in cells} - {""} <= _INDICATOR.keys() | _UNCERTAIN:
        return _of_findings(table, at, "")
    names = {PRESENT: target, ABSENT: f"no {target}", MISSING: ""}
    letters = {1: PRESENT, 0: ABSENT, -1: uncertain, None: MISSING}
    return [names[letters[_indicator(cell)]] for cell in cells]


def _of_findings(table: Table, at: int, target: str) -> list[str]:
    """Return the labels of a column, or whether the finding `target` is among them."""
    cells = _column(table, at)
    parts = _parted(cells)
    known = Counter(part for cell in cells for part in parts[cell])
    if target:
        if target not in known:
            raise unknown("finding", target, known)
        return [(target if target in parts[cell] else f"no {target}") if cell else "" for cell in cells]
    for (line, _), cell in zip(table.rows, cells, strict=True):
        if len(parts[cell]) > 1:
            example = command("doctor", DATASET=table.path, TARGET=known.most_common(2)[-1][0])
            raise BadDataset(
                f"{table.path}, line {line}: several findings of one image ({cell}), which are no classes; leave TASK= "
                f"away, or choose one by TARGET=, such as {example}; there are {listed(sorted(known))}"
            )
    return ["".join(parts[cell]) for cell in cells]


def _parted(cells: list[str]) -> dict[str, list[str]]:
    """Return the findings in each different cell."""
    alone = {cell for cell in cells if not any(mark in cell for mark in f"{_ALWAYS}[")}
    places: dict[str, set[int]] = {}
    for cell in alone:
        for place, part in enumerate(_split(cell, ",")):
            places.setdefault(part, set()).add(place)
    listed = any(len(own) > 1 for own in places.values())  # edema, mass and mass, nodule: no class has such names
    return {cell: _parts(cell, alone, _ALWAYS + "," * listed) for cell in set(cells)}


def _split(cell: str, mark: str) -> list[str]:
    return [part.strip() for part in cell.split(mark)]


def _findings_in(table: Table) -> list[list[str]]:
    """Return the findings of each row in the column of labels."""
    cells = _column(table, table.roles["label"])
    parts = _parted(cells)
    return [parts[cell] for cell in cells]


def _parts(cell: str, alone: set[str], always: str) -> list[str]:
    """Return the findings in a cell: `a|b`, `['a', 'b']`, or `a/b` where a and b are labels elsewhere."""
    if cell.startswith("[") and cell.endswith("]"):
        return sorted({part.strip() for part in re.split(r"""['",]+""", cell[1:-1]) if part.strip()})
    for mark in _SEPARATORS:
        parts = _split(cell, mark)
        if len(parts) > 1 and (mark in always or alone.issuperset(parts)):
            return sorted({*parts} - {""})
    return [cell] if cell else []


def _indicators(table: Table) -> dict[str, int]:
    """Return the columns that hold 0 and 1 (or -1, or nothing), by name: one finding each, if any tells of one."""
    found = {}
    for name, at in table.others().items():
        values = {row[at].lower() for _, row in table.rows}
        if values & _INDICATOR.keys() and all(map(_may_indicate, values)):
            found[name] = at
    return {name: at for name, at in found.items() if not _OF_THE_IMAGE.fullmatch(name)} or found


def _may_indicate(cell: str) -> bool:
    return cell in _INDICATOR or cell in _UNCERTAIN or is_missing(cell)


def nearly_findings(table: Table) -> list[str]:
    """Return the columns that are no findings for a few values other than 1, 0, -1 and blank, with one of those."""
    found = []
    for name, at in table.others().items():
        cells = [row[at].lower() for _, row in table.rows]
        strange = [cell for cell in cells if not _may_indicate(cell)]
        if strange and 2 * len(strange) < len(cells) and any(_INDICATOR.get(cell) == 1 for cell in cells):
            found.append(f"{name} ({strange[0]})")
    return found


def contradicted(table: Table) -> list[str]:
    """Return the images that a table says have no finding, and a finding as well; a device is none."""
    if "label" in table.roles:
        cells = _findings_in(table)
    else:
        columns = _indicators(table).items()
        cells = [[name for name, at in columns if _INDICATOR.get(row[at].lower()) == 1] for _, row in table.rows]
    rows = ([part for part in parts if not _DEVICE.search(part.lower())] for parts in cells)
    both = (0 < sum(map(is_healthy, parts)) < len(parts) for parts in rows)
    return [row[table.roles["path"]] for (_, row), one in zip(table.rows, both, strict=True) if one]


def label_columns(table: Table, target: str) -> set[str]:
    """Return the columns beside that of labels which the labels are read from, by name."""
    return {plain_name(target)} if target else set() if "label" in table.roles else set(_indicators(table))


def _of_indicators(table: Table) -> list[str]:
    """Return the name of the one finding of each row. Raises BadDataset where a row has another number of them."""
    columns = _indicators(table)
    names, at = list(columns), list(columns.values())
    found = [[n for n, k in zip(names, at, strict=True) if _INDICATOR.get(row[k].lower())] for _, row in table.rows]
    if len(names) < 2 or any(len(own) != 1 for own in found):
        example = command("doctor", DATASET=table.path, TARGET=names[-1]) if names else ""
        choose = f"; choose a finding, such as {example}; there are {listed(names)}" if names else ""
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
