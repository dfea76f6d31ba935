"""Two runs in the terminal: a line for each score, and the verdict in one sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from features.progress import printable
from models.metrics import METRICS
from models.runs.compare import ALPHA
from models.runs.pair import TwoRuns
from models.runs.scores import as_dict
from models.runs.summary import plural, with_interval

if TYPE_CHECKING:
    from rich.console import Console


def print_pair(two: TwoRuns, console: Console) -> None:
    """Print each score of two runs, the difference with its interval and p, and how it was tested."""
    from rich import box
    from rich.table import Table

    table = Table("score", "A", "B", "A - B [95 % interval]", "p", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for name, row in two.differences.items():
        p = "–" if math.isnan(row.test.p_value) else f"{row.test.p_value:.3g}"
        sides = ("–" if math.isnan(value) else f"{value:.3f}" for value in (row.a, row.b))
        table.add_row(METRICS[name].label, *sides, with_interval(as_dict(row.test.difference)), p)
    console.print(table)
    for line in (f"A: {two.names[0]}", f"B: {two.names[1]}", *_how(two)):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _how(two: TwoRuns) -> list[str]:
    unit = two.grouped_by or "image"
    where = "test images" if two.tested else "images, out of fold"
    return [
        f"PROTOCOL={two.protocol}: the same {two.images:,} {where}, of {two.groups:,} {plural(unit)}; paired by {unit}",
        "p of each test alone, as if these two had been named before any score was seen; of many runs, make compare "
        "corrects for all.",
    ]


def verdict_of_pair(two: TwoRuns) -> str:
    """Return whether the ROC AUC of one run is higher, and what a margin allows to claim."""
    test = two.differences["roc_auc"].test
    found = with_interval(as_dict(test.difference))
    if math.isnan(test.p_value):
        words = "cannot be tested on these images"
    elif test.p_value < ALPHA:
        words = f"A is {'higher' if test.difference.value > 0 else 'lower'} by {found}, p = {test.p_value:.3g}"
    else:
        words = f"no detectable difference, A - B = {found}, p = {test.p_value:.3g}"
    return f"ROC AUC: {words}{f'; A is {two.claim}' if two.claim else ''}."
