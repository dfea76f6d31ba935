"""Tables that leave the page: as CSV with all digits, and as LaTeX (booktabs) with intervals as they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from features.storage import csv_lines
from models.metrics import COMPARED
from models.runs.costs import costs
from models.runs.results import ComparisonResult, RunResult, Score
from models.runs.summary import plural, with_interval
from pipeline.render.forest import subgroup_rows

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **dict(zip("\\~^", ("\\textbackslash{}", "\\textasciitilde{}", "\\textasciicircum{}"), strict=True)),
    **dict(zip("−–±≥<>“”", ("$-$", "--", "$\\pm$", "$\\geq$", "$<$", "$>$", "``", "''"), strict=True)),
}
OF_PAPER = {True: ("roc_auc", "sensitivity", "specificity", "brier"), False: ("roc_auc", "balanced_accuracy", "brier")}


def latex(text: str) -> str:
    """Return a text as LaTeX prints it literally; what Latin fonts lack becomes a question mark."""
    return "".join(_LATEX.get(c, c if c.isprintable() and ord(c) < 0x180 else "?") for c in text)


def booktabs(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """Return a table for LaTeX with the package booktabs: texts are taken literally, the first column is a name."""
    body = [" & ".join(map(latex, row)) + r" \\" for row in rows]
    lines = [
        "% \\usepackage{booktabs}; with many columns also \\usepackage{graphicx} and \\resizebox",
        r"\begin{table}",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
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
        [
            *(row.validation_rank, row.name, *_scores(row, parts), *_against(row)),
            *(*cost, None if cost.members else row.images_per_second),
        ]
        for row, cost in zip(results.runs, every, strict=True)
    )


def _scores(row: RunResult, parts: Sequence[str]) -> list[float | None]:
    return [number for part in parts for score in getattr(row, part).values() for number in _ends(score)]


def _ends(score: Score) -> list[float | None]:
    return [score[end] for end in ("value", "low", "high")]


def _against(row: RunResult) -> list[float | str | None]:
    test = row.against_chosen
    if test is None:
        return ["", "", "", "", "chosen", ""]
    return [*_ends(test.difference), test.p_adjusted, test.verdict, test.claim]


class Table(NamedTuple):
    """A table as it is printed."""

    header: list[str]
    rows: list[list[str]]
    caption: str

    def latex(self, label: str) -> str:
        """Return the table for LaTeX (booktabs), labelled tab:`label`."""
        return booktabs(self.header, self.rows, self.caption, f"tab:{label}")


def paper_tables(results: ComparisonResult) -> dict[str, Table]:
    """Return the tables of a paper by name: the images, the ranking, all scores of the chosen run, calibration."""
    tables = {"data": _data(results), "ranking": _ranking(results), "scores": _chosen(results)}
    tables["calibration"] = _calibration(results)
    if results.classes:
        tables["classes"] = _classes(results)
    if results.examination.subgroups:
        tables["subgroups"] = _subgroups(results)
    return tables


def _data(results: ComparisonResult) -> Table:
    data = results.dataset
    rows = [[name, *(f"{counts.get(name, 0):,}" for counts in data.counts.values())] for name in data.classes]
    rows.append(["all images", *(f"{sum(counts.values()):,}" for counts in data.counts.values())])
    if data.grouped_by:
        known = [data.groups.get(split) for split in data.counts]
        rows.append([plural(data.grouped_by), *(f"{n:,}" if n is not None else "–" for n in known)])
    return Table(["Class", *data.counts], rows, f"Images of {data.dataset} by class and split.")


def _chosen(results: ComparisonResult) -> Table:
    chosen, parts = results.chosen, ["validation", "test"] if results.tested else ["validation"]
    rows = [
        [str(about["label"]), *(with_interval(getattr(chosen, part)[name]) for part in parts)]
        for name, about in results.metrics.items()
    ]
    heads = {"validation": "Out of fold", "test": "Test images"}
    caption = f"Scores of {chosen.name} with 95 % intervals; a dash: no interval or no value that holds."
    return Table(["Score", *(heads[part] for part in parts)], rows, caption)


def _calibration(results: ComparisonResult) -> Table:
    names = list(results.calibration["none"])
    labels = [str(results.metrics[name]["label"]) if name in results.metrics else name.capitalize() for name in names]
    rows = [[kind, *(with_interval(row[name]) for name in names)] for kind, row in results.calibration.items()]
    return Table(["Calibration", *labels], rows, f"Calibration of {results.chosen.name}, fitted out of fold.")


def _classes(results: ComparisonResult) -> Table:
    rows = [
        [row["name"], f"{row['images']:,}", with_interval(row["roc_auc"]), with_interval(row["pr_auc"])]
        for row in results.classes
    ]
    return Table(["Class", "Images", "ROC AUC", "PR AUC"], rows, f"{results.chosen.name}: each class against the rest.")


def _subgroups(results: ComparisonResult) -> Table:
    rows = [
        [column, row["name"], " + ".join(map(str, row["images"])), *(with_interval(row[name]) for name in COMPARED)]
        for column, row in subgroup_rows(results)
    ]
    of = " + ".join(results.dataset.classes)
    header = ["Column", "Subgroup", f"Images of {of}", *(str(results.metrics[name]["label"]) for name in COMPARED)]
    return Table(header, rows, f"{results.chosen.name} by subgroup, with 95 % intervals.")


def ranking_latex(results: ComparisonResult) -> str:
    """Return the ranking as a table for LaTeX: scores of the test images, out of fold where there are none."""
    return _ranking(results).latex("ranking")


def _ranking(results: ComparisonResult) -> Table:
    names = OF_PAPER[results.dataset.positive is not None]
    header = ["Run", *(str(results.metrics[name]["label"]) for name in names), "p against the first"]
    rows = [[row.name, *(with_interval(row.shown[name]) for name in names), _p(row)] for row in results.runs]
    where = f"{results.images['test']:,} test images" if results.tested else "images that were left out of training"
    caption = (
        f"Runs on {results.dataset.dataset}, best validation first; scores on {where} with 95 % intervals; p of the "
        "difference in ROC AUC from the first, adjusted for all comparisons."
    )
    return Table(header, rows, caption)


def _p(row: RunResult) -> str:
    test = row.against_chosen
    if test is None or test.p_adjusted is None:
        return "–"
    return f"{test.p_adjusted:.3f}" if test.p_adjusted >= 0.001 else "<0.001"
