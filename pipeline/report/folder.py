"""The folder of a comparison: every file appears whole, the page last."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.files import write_whole
from pipeline.comparison import run_names
from pipeline.report.page import render_page
from pipeline.report.plots import draw_plots
from pipeline.runs import Run

__all__ = ["predictions_csv", "write_report"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet take a cell for a formula


def write_report(results: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> Path:
    """Write results.json, predictions.csv, {roc,pr}.{svg,png} and report.html into `folder`; return the page's path.

    `results` is what compare_runs returned for `runs`. OSError (disk full, read-only) passes through; a file is as
    before or whole.
    """
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "results.json", [text.encode()])
    write_whole(folder / "predictions.csv", predictions_csv(runs))
    for name, content in draw_plots(results, runs).items():
        write_whole(folder / name, [content])
    page = folder / "report.html"
    write_whole(page, [render_page(results, runs).encode()])
    return page


def predictions_csv(runs: Sequence[Run]) -> Iterator[bytes]:
    """Yield a header, then one line per picture of each run, probabilities with all their digits.

    A cell that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, "CSV Injection"); numbers
    are left alone.
    """
    classes = runs[0].facts["classes"]
    yield _lines([["id", "group", "split", "fold", "label", *(f"p_{name}" for name in classes), "run"]])
    for run, name in zip(runs, run_names(runs), strict=True):
        columns = zip(*(column.tolist() for column in run.predictions), strict=True)
        yield _lines(
            [picture, group, *(("test", "") if fold < 0 else ("train", fold)), classes[label], *map(repr, proba), name]
            for picture, group, label, proba, fold in columns
        )


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
