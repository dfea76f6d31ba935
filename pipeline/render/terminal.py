"""The ranked table in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from features.progress import printable
from models.runs.headline import cautions, missed, technical
from models.runs.results import UNDECIDED, ComparisonResult, RunResult, Verdict
from models.runs.summary import PARTIAL, with_interval, without_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORDS = {UNDECIDED: "open", "lower": "lower", "higher": "higher", "cannot be tested": "untestable"}
NOTE = "Ranked by validation (out-of-fold) ROC AUC, which makes the choice; intervals are 95 %."
TIES = "open: no detectable difference from the chosen run on the {} images (corrected p ≥ 0.05); not equality."
CLAIMS = "equivalent: the interval of the difference lies within ±{0:g}; not worse: it lies above −{0:g}."
FIRST = {True: ("sensitivity", "specificity"), False: ("balanced_accuracy",)}  # by patient, by "two classes"
COLUMNS = ("sensitivity", "specificity", "brier")
SHORT = {"sensitivity": "sens.", "specificity": "spec.", "brier": "Brier"}


def terminal() -> Console:
    """Return the terminal, of 100 columns where the output goes elsewhere."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=100)


def print_table(results: ComparisonResult, console: Console) -> None:
    """Print the runs, best validation first, then the summary and how the choice was made; fits 100 columns."""
    tables = (_table(results, COLUMNS[:n]) for n in range(len(COLUMNS), -1, -1))  # fewer scores on a narrow terminal
    narrow = next((t for t in tables if console.measure(t).minimum <= console.width), _table(results, ()))
    console.print(narrow, soft_wrap=False)
    console.print(printable(results.summary), style="bold", markup=False, highlight=False)
    for sentence in (missed(results), technical(results)):
        console.print(printable(sentence), markup=False, highlight=False)
    data = results.dataset
    guess = " (a guess; POSITIVE= chooses)" if data.positive_is_guess else ""
    positive = (
        [f"Sensitivity is that of “{printable(data.positive)}”, the positive class{guess}."] if data.positive else []
    )
    partial = [PARTIAL] * any(row.record.partial for row in results.runs)
    lines = [NOTE, *partial, *positive, TIES.format("test" if results.tested else "held-out")]
    lines += map(printable, examined_lines(results))
    console.print("\n".join(lines), style="dim", markup=False, highlight=False)
    if margin := results.settings.get("margin"):
        console.print(CLAIMS.format(margin), style="dim", markup=False, highlight=False)
    if note := results.dataset.note:
        console.print(printable(note), style="dim", markup=False, highlight=False)


def examined_lines(results: ComparisonResult) -> Iterator[str]:
    """Yield what is said of the chosen run alone: by patient, the subgroups that differ, remarks."""
    found, unit = results.examination, results.dataset.grouped_by or "group"
    if graded := [name for name in ("kappa", "grades_off") if name in results.metrics]:
        scores = results.chosen.shown
        said = (f"{results.metrics[name]['label']} {with_interval(scores[name])}" for name in graded)
        yield f"Grades of the chosen run: {', '.join(said)}."
    if found.by_group:
        scores, labels = found.by_group["scores"], results.metrics
        names = ("roc_auc", *FIRST[results.dataset.positive is not None])
        told = (f"{labels[name]['label']} {with_interval(scores[name])}" for name in names)
        yield f"The chosen run by {unit} ({found.by_group['aggregate']} of its images): {', '.join(told)}."
    for table in found.subgroups:
        p_values = [(name, test["p_adjusted"]) for name, test in table["tests"].items()]
        apart = [
            f"{name.replace('_', ' ')} (p = {p:.3g})"
            for name, p in p_values
            if p is not None and p < results.settings["alpha"]
        ]
        if apart:
            yield f"Subgroups of {table['column']} differ in {', '.join(apart)}; corrected for all."
    yield from cautions(results)
    yield from found.remarks


def _table(results: ComparisonResult, scores: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tested = results.tested
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", justify="right")
    table.add_column("run", overflow="fold")
    for title in (
        ("valid.\nAUC", "test ROC AUC\n[95 % interval]") if tested else ("validation ROC AUC\n[95 % interval]",)
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for name in scores:
        table.add_column(SHORT[name], justify="right", no_wrap=True, min_width=6)
    spread = any(row.record.spread for row in results.runs)
    if spread:
        table.add_column("SD over\nseeds", justify="right", no_wrap=True)
    table.add_column("train\ns", justify="right", no_wrap=True, min_width=6)
    finetuned = any(row.record.finetuning for row in results.runs)  # else the rate says no more than the seconds
    if finetuned:
        table.add_column("img.\n/s", justify="right", no_wrap=True, min_width=6)
    table.add_column("vs\nchosen", no_wrap=True)
    for row in results.runs:
        chosen = row is results.chosen
        table.add_row(*map(Text, _cells(row, chosen, finetuned, spread, scores)), style="bold" if chosen else "")
    return table


def _cells(row: RunResult, chosen: bool, finetuned: bool, spread: bool, scores: Sequence[str]) -> list[str]:
    shown, seconds = row.shown, row.record.seconds
    areas = [without_interval(row.validation["roc_auc"])] if row.test else []
    versus = row.against_chosen
    return [
        str(row.validation_rank),
        printable(row.name),
        *areas,
        with_interval(shown["roc_auc"]),
        *(without_interval(shown[name]) for name in scores),
        *([_over_seeds(row)] if spread else []),
        f"{seconds['fit'] + seconds['oof']:.3g}",
        *([f"{row.images_per_second:,.0f}"] if finetuned else []),
        "chosen" if chosen else _verdict(versus) if versus else "–",
    ]


def _verdict(versus: Verdict) -> str:
    """Return a verdict in a word or two: a claim against a margin where the test is undecided, beside it where not."""
    short = versus.claim.partition(" within")[0].partition(" by")[0]
    if not short or versus.verdict == "higher":
        return WORDS[versus.verdict]
    return f"{WORDS[versus.verdict]}, {short}" if versus.verdict == "lower" else short


def _over_seeds(row: RunResult) -> str:
    """Return the standard deviation over seeds of the area that is shown."""
    told = (row.record.spread or {}).get("test" if row.test else "validation")
    return f"{told['sd']:.3f}" if told else "–"
