"""The ranked table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from features.progress import printable
from models.runs.summary import with_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORDS = {"tie": "≈ tie", "lower": "lower", "higher": "higher"}
NOTE = "Ranked by validation (out-of-fold) ROC AUC, which makes the choice; intervals are 95 %."
TIES = "≈ tie: on the {} images not distinguishable from the chosen run (Holm-corrected p ≥ 0.05)."
COLUMNS = ("sensitivity", "specificity", "brier")
SHORT = {"sensitivity": "sens.", "specificity": "spec.", "brier": "Brier"}


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """Print the runs, best validation first, then the summary and how the choice was made; fits 100 columns."""
    console.print(_table(results), soft_wrap=False)
    console.print(printable(results["summary"]), style="bold", markup=False, highlight=False)
    lines = [NOTE, TIES.format("test" if results["runs"][0]["test"] else "held-out")]
    console.print("\n".join(lines), style="dim", markup=False, highlight=False)
    if note := results["dataset"]["note"]:
        console.print(printable(note), style="dim", markup=False, highlight=False)


def _table(results: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tested = results["runs"][0]["test"] is not None
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", justify="right")
    table.add_column("run", overflow="fold")
    for title in (
        ("valid.\nAUC", "test ROC AUC\n[95 % interval]") if tested else ("validation ROC AUC\n[95 % interval]",)
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for name in COLUMNS:
        table.add_column(SHORT[name], justify="right", no_wrap=True, min_width=6)
    table.add_column("train\ns", justify="right", no_wrap=True, min_width=6)
    thawed = any(row["thaw"] for row in results["runs"])  # else the rate says no more than the seconds
    if thawed:
        table.add_column("pict.\n/s", justify="right", no_wrap=True, min_width=6)
    table.add_column("vs\nchosen", no_wrap=True)
    for row in results["runs"]:
        chosen = row["name"] == results["chosen"]
        table.add_row(*map(Text, _cells(row, chosen, thawed)), style="bold" if chosen else "")
    return table


def _cells(row: Mapping[str, Any], chosen: bool, thawed: bool) -> list[str]:
    shown = row["test"] or row["validation"]
    areas = [_plain(row["validation"]["roc_auc"])] if row["test"] else []
    versus = row["against_chosen"]
    return [
        str(row["validation_rank"]),
        printable(row["name"]),
        *areas,
        with_interval(shown["roc_auc"]),
        *(_plain(shown[name]) for name in COLUMNS),
        f"{row['seconds']['fit'] + row['seconds']['oof']:.3g}",
        *([f"{row['images_per_second']:,.0f}"] if thawed else []),
        "chosen" if chosen else WORDS[versus["verdict"]] if versus else "–",
    ]


def _plain(score: Mapping[str, float | None]) -> str:
    return "–" if score["value"] is None else f"{score['value']:.3f}"
