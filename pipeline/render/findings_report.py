"""The comparison of runs of several findings: table in the terminal, results.json, and a page without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from features.datasets.dataset import SPLITS
from features.progress import printable
from features.storage import write_whole
from models.metrics import METRICS, Band, pr_curve_band, roc_curve_band
from models.runs.compare import runs_by_name
from models.runs.findings_headline import cautions, extremes, missed, technical
from models.runs.findings_results import FindingsResult, FindingsRunResult
from models.runs.record import Run
from models.runs.scores import LEVEL, shown
from models.runs.summary import with_interval, without_interval
from models.validation.predictions import Predictions
from pipeline.render.html_page import Content, kept_gallery, predictions_csv, report_command
from pipeline.render.templates import environment
from pipeline.render.terminal import WORDS

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = Path(__file__).parent
GRID, SIDE = 51, 100  # points of a small curve; its width and height in the drawing
LINES = 3  # runs in the small curves
COLUMNS = 6  # runs in the table of findings by run
_FLAT_DRAWS = 500  # of the band of a small curve


class Small(NamedTuple):
    """One finding's curves as SVG: the band of the chosen run, and a line for each run, the chosen one first."""

    name: str
    present: int
    area: str
    band: str
    lines: list[str]


def print_findings(results: FindingsResult, console: Console) -> None:
    """Print the runs, best validation first, then the findings of the chosen one and the summary."""
    console.print(_runs_table(results), soft_wrap=False)
    console.print(_findings_table(results.chosen), soft_wrap=False)
    console.print(printable(results.summary), style="bold", markup=False, highlight=False)
    for sentence in filter(None, (extremes(results), missed(results), pooled(results), technical(results))):
        console.print(printable(sentence), markup=False, highlight=False)
    for sentence in cautions(results):
        console.print(printable(sentence), style="dim", markup=False, highlight=False)
    console.print(
        "Ranked by the mean validation (out-of-fold) ROC AUC over the findings; intervals are 95 %.", style="dim"
    )
    if note := results.dataset.note:
        console.print(printable(note), style="dim", markup=False, highlight=False)


def pooled(results: FindingsResult) -> str:
    """Say what the areas of the chosen run are over all findings at once; empty where that was not asked for."""
    found = results.chosen.micro
    if not found:
        return ""
    areas = " and ".join(f"{METRICS[name].label} {with_interval(found[name])}" for name in found)
    return f"Over all pairs of an image and a finding (micro), in which frequent findings weigh most: {areas}."


def _runs_table(results: FindingsResult) -> Any:
    titles = [
        "",
        "run",
        *(["valid.\nmean AUC"] if results.tested else []),
        "mean ROC AUC\n[95 % interval]",
        "mean\nPR AUC",
    ]
    table = _empty([*titles, "train\ns", "vs\nchosen"], names=1)
    for row in results.runs:
        versus = row.against_chosen
        cells = [str(row.validation_rank), printable(row.name)]
        cells += [without_interval(row.validation["roc_auc"])] if row.test else []
        cells += [with_interval(row.shown["roc_auc"]), without_interval(row.shown["pr_auc"])]
        cells += [f"{row.record.seconds['fit'] + row.record.seconds['oof']:.3g}"]
        table.add_row(*cells, WORDS[versus.verdict] if versus else "chosen", style="" if versus else "bold")
    return table


def _findings_table(chosen: FindingsRunResult) -> Any:
    table = _empty(["finding", "images", "present", "ROC AUC\n[95 % interval]", "PR AUC", "sens.", "spec."], names=0)
    for row in chosen.findings:
        plain = (without_interval(row.scores[name]) for name in ("pr_auc", "sensitivity", "specificity"))
        area = with_interval(row.scores["roc_auc"])
        table.add_row(printable(row.name), f"{row.images:,}", f"{row.present:,}", area, *plain)
    return table


def _empty(titles: Sequence[str], *, names: int) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for at, title in enumerate(titles):
        table.add_column(title, justify="left" if at == names else "right", overflow="fold", no_wrap=at != names)
    return table


def write_findings(results: FindingsResult, runs: Sequence[Run], folder: Path, *, no_gallery: str = "") -> Path:
    """Write results.json, predictions.csv and report.html into `folder`; return the page's path.

    `results` is what compare_findings returned for `runs`; a gallery that `report` wrote there is on the page, or
    `no_gallery` says why there is none. OSError passes through; a file is as before or whole.
    """
    text = json.dumps(results.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "results.json", [text.encode()])
    write_whole(folder / "predictions.csv", predictions_csv(runs))
    page = folder / "report.html"
    chosen = runs_by_name(runs)[results.chosen.name]
    gallery = kept_gallery(folder, results, chosen)
    write_whole(page, [render_findings(results, runs, gallery, no_gallery=no_gallery).encode()])
    return page


def render_findings(
    results: FindingsResult, runs: Sequence[Run], gallery: Content | None = None, *, no_gallery: str = ""
) -> str:
    """Return the HTML of the comparison, which needs no network and no script."""
    from markupsafe import Markup

    by_name = runs_by_name(runs)
    parts = [shown(by_name[row.name]) for row in results.runs[:LINES]]
    template = environment().get_template("findings.html.j2")
    return template.render(
        results=results,
        extremes=extremes(results),
        missed=missed(results),
        technical=technical(results),
        pooled=pooled(results),
        cautions=list(cautions(results)),
        chosen=results.chosen,
        tested=results.tested,
        where="on the test images" if results.tested else "out of fold",
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        curves={kind: _small_multiples(kind, results, parts) for kind in ("roc", "pr")},
        compared=results.runs[:COLUMNS],
        shares=_shares(results.together),
        splits=[split for split in SPLITS if split in results.dataset.counts],
        side=SIDE,
        gallery=gallery,
        no_gallery=no_gallery,
        report_command=report_command(results),
    )


def _small_multiples(kind: str, results: FindingsResult, parts: Sequence[Predictions]) -> list[Small]:
    rows = []
    for k, row in enumerate(results.chosen.findings):
        bands = [_band(kind, part.finding(k), _FLAT_DRAWS if at == 0 else 0) for at, part in enumerate(parts)]
        area = with_interval(row.scores["roc_auc" if kind == "roc" else "pr_auc"])
        rows.append(Small(row.name, row.present, area, _outline(bands[0]), [_line(band) for band in bands]))
    return rows


def _band(kind: str, part: Predictions, n_bootstrap: int) -> Band:
    curve = roc_curve_band if kind == "roc" else pr_curve_band
    return curve(part.y, part.proba[:, 1], part.groups, grid=GRID, n_bootstrap=n_bootstrap, level=LEVEL)


def _line(band: Band) -> str:
    """Return a curve as points of an SVG polyline; empty where the images lack a side of the finding."""
    return _points(band.x, band.value)


def _outline(band: Band) -> str:
    return _points(np.concatenate([band.x, band.x[::-1]]), np.concatenate([band.low, band.high[::-1]]))


def _points(x: Any, y: Any) -> str:
    if np.isnan(y).any():
        return ""
    return " ".join(f"{SIDE * a:.1f},{SIDE * (1 - b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _shares(together: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Return each number of images with both findings, and its share of those with the finding of the row."""
    return [[(n, n / max(1, row[at])) for n in row] for at, row in enumerate(together)]
