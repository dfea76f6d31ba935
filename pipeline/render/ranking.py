"""The ranked table of the page: columns, cells, and the little bars that stand for intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Bar", "Cell", "Column", "ranking_columns", "ranking_rows"]

FIRST = {True: ("sensitivity", "specificity"), False: ("balanced_accuracy", "f1")}  # shown at once, by "two classes"
HELP = {
    "roc_auc": "area under the ROC curve",
    "pr_auc": "area under the precision-recall curve (average precision)",
    "accuracy": "share of right decisions",
    "balanced_accuracy": "mean over the classes of the share found",
    "sensitivity": "share of positives found",
    "specificity": "share of negatives left alone",
    "f1": "harmonic mean of precision and recall",
    "brier": "mean squared error of the probabilities; less is better",
    "ece": "expected calibration error; less is better",
    "log_loss": "mean negative log probability of the true class; less is better",
}


class Column(NamedTuple):
    """A column of scores."""

    part: str  # "validation" or "test"
    metric: str
    label: str
    about: str
    falling: bool  # whether sorting starts with the largest
    extra: bool  # shown only with all metrics


class Bar(NamedTuple):
    """An interval in per cent of the column's width; `chosen` is where the chosen run's value lies."""

    low: float
    value: float
    high: float
    chosen: float


class Cell(NamedTuple):
    """A score with its interval in words and as a bar."""

    value: float | None
    bounds: str
    bar: Bar | None
    extra: bool


def ranking_columns(results: Mapping[str, Any]) -> list[Column]:
    """Return validation ROC AUC, then every metric on the test pictures; validation throughout without them."""
    metrics, tested = results["metrics"], results["runs"][0]["test"] is not None
    first = ("roc_auc", *FIRST[results["dataset"]["positive"] is not None], "brier")
    order = [*first, *(name for name in metrics if name not in first)]
    part, before = ("test", "Test ") if tested else ("validation", "Validation ")
    columns = [
        Column(
            part,
            name,
            before + metrics[name]["label"] if name == "roc_auc" else metrics[name]["label"],
            HELP.get(name, metrics[name]["label"]),
            metrics[name]["direction"] > 0,
            name not in first,
        )
        for name in order
    ]
    choice = Column("validation", "roc_auc", "Validation ROC AUC", "out of fold; makes the choice", True, False)
    return [choice, *columns] if tested else columns


def ranking_rows(results: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the cells of each run, in the order of the results and of `ranking_columns`."""
    columns, runs = ranking_columns(results), results["runs"]
    scales = [_scale([row[column.part][column.metric] for row in runs]) for column in columns]
    return [[_cell(row, runs[0], *pair) for pair in zip(columns, scales, strict=True)] for row in runs]


def _scale(scores: Sequence[Mapping[str, float | None]]) -> tuple[float, float]:
    """Return the ends of a column's axis: all intervals, with a little room."""
    numbers = [number for score in scores for number in score.values() if number is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def _cell(row: Mapping[str, Any], chosen: Mapping[str, Any], column: Column, scale: tuple[float, float]) -> Cell:
    score, best = (r[column.part][column.metric] for r in (row, chosen))
    value, low, high = (score[name] for name in ("value", "low", "high"))
    if value is None:
        return Cell(None, "", None, column.extra)
    if low is None or high is None:
        return Cell(value, "", None, column.extra)
    places = [
        round(100 * (number - scale[0]) / (scale[1] - scale[0]), 2) for number in (low, value, high, best["value"])
    ]
    return Cell(value, f"[{low:.3f}, {high:.3f}]", Bar(*places), column.extra)
