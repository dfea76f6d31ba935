"""ROC and PR curves for papers: SVG and PNG by matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from features.progress import printable
from models.runs.compare import run_names
from models.runs.record import Run
from models.runs.scores import shown
from models.runs.summary import with_interval
from pipeline.render.curves import CURVES, Side, sides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "LINES", "STYLE", "draw_plots", "saved"]

# Okabe & Ito 2008, "Color Universal Design", without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MOST = 6  # runs in one plot, the chosen one and the next in the ranking
STYLE: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "firn", "axes.spines.top": False, "axes.spines.right": False}
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}}


def draw_plots(results: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, bytes]:
    """Return {"roc.svg", "roc.png", "pr.svg", "pr.png"}: the same bytes for the same results.

    Two classes: the chosen run with its band, and the next five of the ranking. More: the chosen run, a line a class.
    """
    import matplotlib as mpl

    by_name = dict(zip(run_names(runs), runs, strict=True))
    classes = results["dataset"]["classes"]
    ranked = [(row, sides(shown(by_name[row["name"]]), classes)) for row in results["runs"][:MOST]]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class name in a script that the font lacks is drawn as boxes
        return {
            f"{kind}.{suffix}": content
            for kind in CURVES
            for suffix, content in saved(_drawn(kind, ranked, results)).items()
        }


def _drawn(kind: str, ranked: Sequence[tuple[Mapping[str, Any], list[Side]]], results: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    curve, settings = CURVES[kind], results["settings"]
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel=curve.x, ylabel=curve.y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    chosen = ranked[0][1]
    if len(chosen) == 1:
        bootstrap = {name: settings[name] for name in ("n_bootstrap", "level", "seed")}
        band = chosen[0].band(kind, **bootstrap)
        axes.fill_between(band.x, band.low, band.high, color=COLOURS[0], alpha=0.18, linewidth=0)
        lines = [(side[0], row["name"], row) for row, side in ranked]
    else:
        lines = [(side, side.label, score) for side, score in zip(chosen, results["classes"], strict=True)]
    metric = f"{kind}_auc"
    names = [f"{name}  {with_interval(_scores(row)[metric])}" for _, name, row in lines]
    for i, (side, _, _) in enumerate(lines):
        band = side.band(kind, n_bootstrap=0)
        colour, dash = COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]
        axes.plot(
            band.x, band.value, dash, color=colour, linewidth=2 if len(chosen) == 1 and not i else 1.1, zorder=20 - i
        )
    _name_lines(axes, names)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=0.8)
    return figure


def _scores(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scores of a run, or of a class, on the pictures that are shown."""
    scores: Mapping[str, Any] = row if "roc_auc" in row else row["test"] or row["validation"]
    return scores


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    """Add the legend with names taken literally: no mathematics between dollars, no meaning of an underscore."""
    legend = axes.legend(
        axes.lines, [str(i) for i in range(len(names))], loc="best", fontsize=7, framealpha=0.8, edgecolor="none"
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(printable(name))
        text.set_parse_math(False)


def saved(figure: Figure) -> dict[str, bytes]:
    """Return a figure as {"svg", "png"}: the same bytes for the same figure."""
    files = {}
    for suffix, metadata in METADATA.items():
        target = io.BytesIO()
        figure.savefig(target, format=suffix, dpi=300, metadata=metadata)
        files[suffix] = target.getvalue()
    return files
