"""The ranking on the page: a column for each score, a cell with its interval as a bar for each run."""

from __future__ import annotations

from typing import NamedTuple

from models.runs.results import ComparisonResult, RunResult
from pipeline.render.forest import Bar, bar_of, scale_of

FIRST = {True: ("sensitivity", "specificity"), False: ("balanced_accuracy", "f1")}  # shown at once, by "two classes"
GRADES = ("kappa", "grades_off")  # with ORDERED=1
HELP = {
    "kappa": "agreement of true and decided grades beyond chance; a miss by two grades counts four times one by one",
    "grades_off": "grades between truth and decision, on average; less is better",
    "roc_auc": "area under the ROC curve",
    "pr_auc": "area under the precision-recall curve (average precision)",
    "accuracy": "share of right decisions",
    "balanced_accuracy": "mean over the classes of the share found",
    "sensitivity": "share of positives found",
    "specificity": "share of negatives left alone",
    "f1": "harmonic mean of precision and recall",
    "mcc": "Matthews correlation coefficient of true and decided classes; 0 is chance",
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


class Cell(NamedTuple):
    """A score with its interval in words and as a bar."""

    value: float | None
    bounds: str
    bar: Bar | None
    extra: bool


def ranking_columns(results: ComparisonResult) -> list[Column]:
    """Return validation ROC AUC, then every metric on the test images; validation throughout without them."""
    metrics, tested = results.metrics, results.tested
    graded = [name for name in GRADES if name in metrics]
    first = ("roc_auc", *graded, *FIRST[results.dataset.positive is not None], "brier")
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


def ranking_rows(results: ComparisonResult) -> list[list[Cell]]:
    """Return the cells of each run, in the order of the results and of `ranking_columns`."""
    columns, runs = ranking_columns(results), results.runs
    scales = [scale_of([getattr(row, column.part)[column.metric] for row in runs]) for column in columns]
    return [[_cell(row, runs[0], *pair) for pair in zip(columns, scales, strict=True)] for row in runs]


def _cell(row: RunResult, chosen: RunResult, column: Column, scale: tuple[float, float]) -> Cell:
    score, best = (getattr(r, column.part)[column.metric] for r in (row, chosen))
    value, low, high = (score[name] for name in ("value", "low", "high"))
    if value is None:
        return Cell(None, "", None, column.extra)
    if low is None or high is None:
        return Cell(value, "", None, column.extra)
    told = (row.record.spread or {}).get(column.part) if column.metric == "roc_auc" else None
    over_seeds = f", SD over {len(told['values'])} seeds {told['sd']:.3f}" if told else ""
    bar = bar_of(score, best["value"], scale)
    return Cell(value, f"[{low:.3f}, {high:.3f}]{over_seeds}", bar, column.extra)
