"""Tables that leave the page: as CSV with all digits, and as LaTeX (booktabs) with intervals as they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from features.storage import csv_lines
from models.runs.costs import costs
from models.runs.results import ComparisonResult, RunResult, Score
from models.runs.summary import with_interval

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **dict(zip("\\~^", ("\\textbackslash{}", "\\textasciitilde{}", "\\textasciicircum{}"), strict=True)),
    **dict(zip("−–±≥<>“”", ("$-$", "--", "$\\pm$", "$\\geq$", "$<$", "$>$", "``", "''"), strict=True)),
}
OF_PAPER = {True: ("roc_auc", "sensitivity", "specificity", "brier"), False: ("roc_auc", "balanced_accuracy", "brier")}


def latex(text: str) -> str:
    """Return a text as LaTeX prints it literally; what Latin fonts lack becomes a question mark."""
    return "".join(_LATEX.get(c, c if c.isprintable() and ord(c) < 0x180 else "?") for c in text)


def booktabs(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str, columns: str = "") -> str:
    """Return a table for LaTeX with the package booktabs: texts are taken literally, the first column is a name."""
    body = [" & ".join(map(latex, row)) + r" \\" for row in rows]
    lines = [
        "% \\usepackage{booktabs}; with many columns also \\usepackage{graphicx} and \\resizebox",
        r"\begin{table}",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{columns or 'l' + 'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(latex, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def ranking_csv(results: ComparisonResult) -> Iterator[bytes]:
    """Yield a header, then a line for each run with all scores of both parts, the test against the chosen, the cost."""
    parts = ["validation", "test"] if results.tested else ["validation"]
    ends = [f"{part}_{name}{end}" for part in parts for name in results.metrics for end in ("", "_low", "_high")]
    versus = ["difference", "difference_low", "difference_high", "p_adjusted", "verdict", "claim"]
    spent = ["seconds", "members", "members_without_seconds", "images_per_second"]
    yield csv_lines([["rank", "run", *ends, *versus, *spent]])
    every = costs([row.record for row in results.runs])
    yield csv_lines(
        [row.validation_rank, row.name, *_scores(row, parts), *_against(row), *map(_number, (*cost, _pace(row, cost)))]
        for row, cost in zip(results.runs, every, strict=True)
    )


def _scores(row: RunResult, parts: Sequence[str]) -> list[str]:
    return [_number(n) for part in parts for score in getattr(row, part).values() for n in _ends(score)]


def _ends(score: Score) -> list[float | None]:
    return [score[end] for end in ("value", "low", "high")]


def _pace(row: RunResult, cost: Sequence[float]) -> float | None:
    return None if cost[1] else row.images_per_second


def _against(row: RunResult) -> list[str]:
    test = row.against_chosen
    if test is None:
        return ["", "", "", "", "chosen", ""]
    return [*map(_number, (*_ends(test.difference), test.p_adjusted)), test.verdict, test.claim]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def ranking_latex(results: ComparisonResult) -> str:
    """Return the ranking as a table for LaTeX: scores of the test images, out of fold where there are none."""
    names = OF_PAPER[results.dataset.positive is not None]
    header = ["Run", *(str(results.metrics[name]["label"]) for name in names), "p against the first"]
    rows = [[row.name, *(with_interval(row.shown[name]) for name in names), _p(row)] for row in results.runs]
    where = f"{results.images['test']:,} test images" if results.tested else "images that were left out of training"
    caption = (
        f"Runs on {results.dataset.dataset}, best validation first; scores on {where} with 95 % intervals; p of the "
        "difference in ROC AUC from the first, adjusted for all comparisons."
    )
    return booktabs(header, rows, caption, "tab:ranking")


def _p(row: RunResult) -> str:
    test = row.against_chosen
    if test is None or test.p_adjusted is None:
        return "–"
    return f"{test.p_adjusted:.3f}" if test.p_adjusted >= 0.001 else "<0.001"
