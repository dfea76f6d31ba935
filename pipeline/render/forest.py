"""Intervals as bars on a common scale, and the subgroups of the chosen run as a forest of them; the same as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from features.storage import csv_lines
from models.metrics import COMPARED
from models.runs.results import ComparisonResult, Score

OF_LINE = {"calibration_intercept": "Calibration intercept", "calibration_slope": "Calibration slope"}


class Bar(NamedTuple):
    """An interval in per cent of the column's width; `chosen` is where the value to compare with lies."""

    low: float
    value: float
    high: float
    chosen: float


class ForestCell(NamedTuple):
    """A score of a subgroup, with its interval in words and as a bar."""

    value: float | None
    bounds: str
    bar: Bar | None


class ForestColumn(NamedTuple):
    """One column of the data set: its rows, a cell for each score, and its tests in words."""

    name: str
    rows: list[tuple[Mapping[str, Any], list[ForestCell]]]
    tests: list[str]
    left_out: int


def scale_of(scores: Sequence[Score]) -> tuple[float, float]:
    """Return the ends of an axis: all intervals, with a little room."""
    numbers = [number for score in scores for number in score.values() if number is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def bar_of(score: Score, reference: float | None, scale: tuple[float, float]) -> Bar | None:
    """Return a score as a bar on a scale, with a line at `reference`; None where it has no interval."""
    numbers = [score["low"], score["value"], score["high"], score["value"] if reference is None else reference]
    places = [round(100 * (x - scale[0]) / (scale[1] - scale[0]), 2) for x in numbers if x is not None]
    return Bar(*places) if len(places) == len(numbers) else None


def forest_scores(results: ComparisonResult) -> dict[str, str]:
    """Return the scores of a subgroup, by name, with their labels; calibration of two classes only."""
    labels = {name: str(results.metrics[name]["label"]) for name in COMPARED}
    return labels | {name: label for name, label in OF_LINE.items() if name in results.examination.everyone}


def subgroup_rows(results: ComparisonResult) -> list[tuple[str, Mapping[str, Any]]]:
    """Return all images, whose column is empty, then each subgroup with its column."""
    found = results.examination
    return [("", found.everyone), *((table["column"], row) for table in found.subgroups for row in table["rows"])]


def forest(results: ComparisonResult) -> list[ForestColumn]:
    """Return the subgroups of each column, with the row of all images first, on one scale a score."""
    found, names = results.examination, list(forest_scores(results))
    scales = {name: scale_of([row[name] for _, row in subgroup_rows(results)]) for name in names}

    def cells(row: Mapping[str, Any]) -> list[ForestCell]:
        return [_cell(row[name], found.everyone[name]["value"], scales[name]) for name in names]

    return [
        ForestColumn(
            table["column"],
            [(row, cells(row)) for row in (found.everyone, *table["rows"])],
            [_test(results, name, table["tests"]) for name in COMPARED],
            table["left_out"],
        )
        for table in found.subgroups
    ]


def _cell(score: Score, reference: float | None, scale: tuple[float, float]) -> ForestCell:
    value, low, high = (score[name] for name in ("value", "low", "high"))
    known = value is not None and low is not None and high is not None
    return ForestCell(value, f"[{low:.2f}, {high:.2f}]" if known else "", bar_of(score, reference, scale))


def _test(results: ComparisonResult, name: str, tests: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a test in words: no detectable difference is not equality."""
    p, label = tests[name]["p_adjusted"], results.metrics[name]["label"]
    if p is None:
        return f"{label}: cannot be tested"
    told = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    return f"{label}: {'differs' if p < results.settings['alpha'] else 'no detectable difference'} ({told})"


def subgroups_csv(results: ComparisonResult) -> Iterator[bytes]:
    """Yield a header, then a line for all images and each subgroup, with all digits."""
    found, classes = results.examination, results.dataset.classes
    names = list(forest_scores(results))
    counts = [f"{what}_{name}" for what in ("images", "groups") for name in classes]
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    yield csv_lines([["column", "value", *counts, *ends, *(f"p_adjusted_{name}" for name in COMPARED)]])
    lines = [("", found.everyone, [None] * len(COMPARED))]
    for table in found.subgroups:
        tests = [table["tests"][name]["p_adjusted"] for name in COMPARED]
        lines += [(table["column"], row, tests) for row in table["rows"]]
    yield csv_lines(
        [
            *(column, row["name"], *row["images"], *row["groups"]),
            *(row[name][end] for name in names for end in ("value", "low", "high")),
            *tests,
        ]
        for column, row, tests in lines
    )
