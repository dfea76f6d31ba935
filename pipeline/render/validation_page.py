"""An external validation in words, as a table in the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from features.progress import printable
from models.metrics import METRICS
from models.runs.results import Scores
from models.runs.summary import intervals_of_others, plural, with_interval
from models.validation.external import ExternalValidation
from models.validation.predictions import Predictions
from pipeline.render import page_figures as figures
from pipeline.render.html_page import render, shares_of_rows
from pipeline.render.ranking import HELP
from pipeline.render.terminal import terminal

if TYPE_CHECKING:
    from rich.table import Table

TILES = {True: ("roc_auc", "sensitivity", "specificity"), False: ("roc_auc", "balanced_accuracy", "accuracy")}
RECORDED = {"test": "its own test images", "validation": "its own images, out of fold", "": "none recorded"}
UPDATES = {
    "prevalence": "class shares as estimated without labels (Saerens et al. 2002)",
    "intercept": "intercept alone, fitted on this set",
    "platt": "slope and intercept (Platt), fitted on this set",
}
SHORT = {"prevalence": "update: prevalence", "intercept": "update: intercept", "platt": "update: Platt"}
NOTE = "note: an update is fitted on this set and scored on groups that had no part in the fit; it is not the bundle's"
LABELS = {"slope": "Slope", "intercept": "Intercept", **{name: metric.label for name, metric in METRICS.items()}}


def summary(result: ExternalValidation) -> str:
    """Return one sentence: the area here and on the model's own test images, calibration, and how unlike the set is."""
    area, name = with_interval(result.here["roc_auc"]), result.dataset["name"]
    then = (
        f"{with_interval(result.recorded['roc_auc'])} on {RECORDED[result.recorded_on]}"
        if "roc_auc" in (result.recorded)
        else "its own is not recorded"
    )
    images, groups = (result.images[name] for name in ("judged", "groups"))
    unit = f" of {groups:,} {plural(result.grouped_by)}" if result.grouped_by else ""
    parts = [f"{result.model['name']} on {name}: ROC AUC {area} on {images:,} images{unit}; {then}", *_trust(result)]
    if result.novelty:
        parts.append(f"{result.novelty['share']['value']:.1%} look unlike the training images")
    return printable("; ".join(parts) + ".")


def _trust(result: ExternalValidation) -> Iterator[str]:
    """Yield whether probabilities of two classes are too high or too low on the whole, where that is known."""
    intercept = list(result.calibration.values())[-1].get("intercept", {})
    low, high = intercept.get("low"), intercept.get("high")
    if low is None or high is None:
        return
    side = "too low" if low > 0 else "too high" if high < 0 else "neither too high nor too low as far as one can tell"
    yield f"probabilities of {result.classes[1]} are on the whole {side} (intercept {with_interval(intercept)})"


def print_validation(result: ExternalValidation) -> None:
    """Print the scores here beside those recorded, the operating points, and every remark; fits 100 columns."""
    out = terminal()
    for table in (_scores_table(result), _points_table(result), _trust_table(result)):
        if table.row_count:
            out.print(table)
    out.print(NOTE, markup=False, highlight=False, soft_wrap=True)
    for line in result.remarks:
        out.print(printable(f"note: {line}"), markup=False, highlight=False, soft_wrap=True)


def _table(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _scores_table(result: ExternalValidation) -> Table:
    several = result.by_group is not None
    by_group = [f"by {result.grouped_by or 'group'}"] if several else []
    table = _table("score", "here", *by_group, RECORDED[result.recorded_on])
    for name, row in result.here.items():
        middle = [with_interval((result.by_group or {})[name])] if several else []
        table.add_row(METRICS[name].label, with_interval(row), *middle, with_interval(result.recorded.get(name, {})))
    return table


def _points_table(result: ExternalValidation) -> Table:
    table = _table("operating point", "from", "score", "here", RECORDED[result.recorded_on])
    for name, row in result.points.items():
        for side, value in row["here"].items():
            then = with_interval(row["recorded"].get(side, {}))
            table.add_row(name, f"{row['threshold']:.4g}", side, with_interval(value), then)
    return table


def _trust_table(result: ExternalValidation) -> Table:
    shown = [name for name in trust_columns(result) if name != "ece"]
    table = _table("probabilities", *(LABELS[name] for name in shown))
    rows = {name: row["scores"] for name, row in result.recalibration.items()}
    for name, scores in [*result.calibration.items(), *((SHORT[name], row) for name, row in rows.items())]:
        table.add_row(name, *(with_interval(scores[column]) for column in shown))
    return table


def trust_columns(result: ExternalValidation) -> Sequence[str]:
    """Return what is said of every kind of probabilities."""
    return list(next(iter(result.calibration.values())))


def updates(result: ExternalValidation) -> list[tuple[str, Scores]]:
    """Return each recalibration in words, with its scores."""
    return [(UPDATES[name], row["scores"]) for name, row in result.recalibration.items()]


def validation_page(result: ExternalValidation, found: Predictions, calibrated: Predictions) -> str:
    """Return one HTML file that needs no network; `found` are the probabilities that rank, then those calibrated."""
    binary = len(result.classes) == 2
    return render(
        "validation_page.html.j2",
        result=result,
        binary=binary,
        summary=summary(result),
        unit=result.grouped_by or "image",
        of_others=intervals_of_others(result.grouped_by or "image"),
        tiles=[(METRICS[name].label, result.here[name], result.recorded.get(name)) for name in TILES[binary]],
        metrics=[(name, METRICS[name].label, HELP.get(name, "")) for name in result.here],
        recorded_words=RECORDED[result.recorded_on],
        labels=LABELS,
        trust=trust_columns(result),
        updates=updates(result),
        update_words=UPDATES,
        confusion=shares_of_rows(result.confusion),
        data={"figures": _figures(result, found, calibrated), "operating": None},
    )


def _figures(result: ExternalValidation, found: Predictions, calibrated: Predictions) -> dict[str, Any]:
    """Return the figures: curves where there are both classes, then reliability, decisions, distances."""
    both = all(row["images"] for row in result.by_class.values())
    plain, trusted = (figures.sides(part, result.classes) for part in (found, calibrated))
    drawn: dict[str, Any] = {"reliability": figures.reliability_figure(trusted)}
    if both:
        name, settings = str(result.model["name"]), dict(result.settings)
        drawn |= {kind: figures.curve_figure(kind, [name], [plain], **settings) for kind in figures.CURVES}
        drawn["decision"] = figures.decision_figure(trusted)
    if len(result.classes) == 2:
        drawn["scores"] = figures.score_figure(plain[0], result.classes[0])
    if result.novelty:
        drawn["novelty"] = _novelty_figure(result.novelty)
    return drawn


def _novelty_figure(novelty: Mapping[str, Any]) -> figures.Figure:
    """Return the share of images below each distance from the training images, here and of held-out training images."""
    layout = figures.blank_layout("distance from the training images", "share of images up to it", legend=True)
    layout["xaxis"] |= {"range": None, "tickformat": "~g"}
    rows = {"training images, held out": novelty["training_quantiles"], "this set": novelty["quantiles"]}
    lines = [
        _cumulative(name, np.array(row), figures.line_of(rank))
        for rank, (name, row) in zip((1, 0), rows.items(), strict=True)
        if row is not None
    ]
    limit = {"type": "scatter", "mode": "lines", "x": [novelty["threshold"]] * 2, "y": [0, 1], "line": figures.GREY}
    return {"layout": layout, "views": [[limit | {"name": "flagged beyond", "hoverinfo": "skip"}, *lines]]}


def _cumulative(name: str, quantiles: Any, line: Mapping[str, Any]) -> figures.Trace:
    shares = np.linspace(0, 1, len(quantiles)).round(4).tolist()
    x = [round(float(value), 4) for value in quantiles]
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": shares, "line": dict(line)}
