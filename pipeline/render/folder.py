"""The folder of a comparison: every file appears whole, the page last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.storage import write_whole
from models.runs.compare import run_names
from models.runs.record import Run
from pipeline.render.extras import load_extras
from pipeline.render.html_page import render_page
from pipeline.render.plots import draw_plots
from pipeline.render.tables import csv_lines

__all__ = ["predictions_csv", "write_report"]


def write_report(results: Mapping[str, Any], runs: Sequence[Run], folder: Path, *, no_gallery: str = "") -> Path:
    """Write results.json, predictions.csv, {roc,pr}.{svg,png} and report.html into `folder`; return the page's path.

    `results` is what compare_runs returned for `runs`. What other verbs have found of the same pictures is on the page
    too (`load_extras`); `no_gallery` says why there is no gallery, where one was asked for. OSError (disk full,
    read-only) passes through; a file is as before or whole.
    """
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "results.json", [text.encode()])
    write_whole(folder / "predictions.csv", predictions_csv(runs))
    for name, content in draw_plots(results, runs).items():
        write_whole(folder / name, [content])
    chosen = dict(zip(run_names(runs), runs, strict=True))[results["chosen"]]
    extras = load_extras(folder, results, chosen)._replace(no_gallery=no_gallery)
    page = folder / "report.html"
    write_whole(page, [render_page(results, runs, extras).encode()])
    return page


def predictions_csv(runs: Sequence[Run]) -> Iterator[bytes]:
    """Yield a header, then one line per picture of each run, probabilities with all their digits."""
    classes = runs[0].facts["classes"]
    yield csv_lines([["id", "group", "split", "fold", "label", *(f"p_{name}" for name in classes), "run"]])
    for run, name in zip(runs, run_names(runs), strict=True):
        columns = zip(*(column.tolist() for column in run.predictions), strict=True)
        yield csv_lines(
            [picture, group, *(("test", "") if fold < 0 else ("train", fold)), classes[label], *map(repr, proba), name]
            for picture, group, label, proba, fold in columns
        )
