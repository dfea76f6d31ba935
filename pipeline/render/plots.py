"""ROC and PR curves for papers: SVG and PNG by matplotlib."""

from __future__ import annotations

import html
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.progress import printable
from models.runs.compare import runs_by_name
from models.runs.record import Run
from models.runs.results import ComparisonResult, RunResult
from models.runs.scores import shown
from models.runs.summary import plural, with_interval
from pipeline.render.page_figures import CURVES, Side, blank_layout, line_of, sides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design", without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MOST = 6  # runs in one plot, the chosen one and the next in the ranking
STYLE: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "firn", "axes.spines.top": False, "axes.spines.right": False}
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}}


def draw_plots(results: ComparisonResult, runs: Sequence[Run]) -> dict[str, bytes]:
    """Return {"roc.svg", "roc.png", "pr.svg", "pr.png"}: the same bytes for the same results.

    Two classes: the chosen run with its band, and the next five of the ranking. More: the chosen run, a line a class.
    """
    import matplotlib as mpl

    by_name = runs_by_name(runs)
    classes = results.dataset.classes
    ranked = [(row, sides(shown(by_name[row.name]), classes)) for row in results.runs[:MOST]]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class name in a script that the font lacks is drawn as boxes
        return {
            f"{kind}.{suffix}": content
            for kind in CURVES
            for suffix, content in saved(curve_plot(kind, ranked, results)).items()
        }


def curve_plot(
    kind: str,
    ranked: Sequence[tuple[RunResult, list[Side]]],
    results: ComparisonResult,
    size: tuple[float, float] = (4.6, 4.2),
) -> Figure:
    """Return the ROC or PR curves (`kind` of CURVES) of runs in the order of the ranking; `size` in inches."""
    from matplotlib.figure import Figure

    curve, settings = CURVES[kind], results.settings
    count = len(ranked) if len(ranked[0][1]) == 1 else len(ranked[0][1])
    figure = Figure(figsize=(size[0], size[1] + 0.15 * count), layout="constrained")
    axes = figure.add_subplot(xlabel=curve.x, ylabel=curve.y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    chosen = ranked[0][1]
    if len(chosen) == 1:
        bootstrap = {name: settings[name] for name in ("n_bootstrap", "level", "seed")}
        band = chosen[0].band(kind, **bootstrap)
        axes.fill_between(band.x, band.low, band.high, color=COLOURS[0], alpha=0.18, linewidth=0)
        lines = [(side[0], row.name, row.shown) for row, side in ranked]
    else:
        lines = [(side, side.label, score) for side, score in zip(chosen, results.classes, strict=True)]
    metric = f"{kind}_auc"
    names = [f"{name}  {with_interval(scores[metric])}" for _, name, scores in lines]
    for i, (side, _, _) in enumerate(lines):
        x, value = side.steps(kind)
        colour, dash = COLOURS[i % len(COLOURS)], LINES[i % len(LINES)]  # told apart in grey too
        axes.plot(x, value, dash, color=colour, linewidth=2 if len(chosen) == 1 and not i else 1.1, zorder=20 - i)
    _name_lines(figure, axes, names)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=0.8)
    return figure


def _name_lines(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Add the legend below, where it hides no curve; names are taken literally, dollars and underscores too."""
    keys, size = [str(i) for i in range(len(names))], _size(names)
    legend = figure.legend(axes.lines, keys, loc="outside lower left", fontsize=size, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(printable(name))
        text.set_parse_math(False)


def _size(names: Sequence[str]) -> float:
    """Return the size of type at which the longest name leaves room for the curves."""
    return 7.0 if max(map(len, names)) < 48 else 5.5


def saved(figure: Figure) -> dict[str, bytes]:
    """Return a figure as {"svg", "png"}: the same bytes for the same figure."""
    files = {}
    for suffix, metadata in METADATA.items():
        target = io.BytesIO()
        figure.savefig(target, format=suffix, dpi=300, metadata=metadata)
        files[suffix] = target.getvalue()
    return files


SCHEMA = 2  # of learning-curve.json
FILE = "learning-curve.json"  # beside the page of `compare`, which shows it


def load_learning(folder: Path, manifest: str) -> dict[str, Any] | None:
    """Return the learning curves that were drawn for the same images, labels and splits; None without any."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        current = content["manifest"] == manifest and content.get("schema") == SCHEMA
        return content if current and content["curves"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def learning_figure(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figure of the page: ROC AUC over the number of groups, on a logarithmic axis, with intervals."""
    layout = blank_layout(f"{plural(content['unit'])} to learn from", "ROC AUC", legend=True)
    layout["xaxis"] |= {"type": "log", "range": None, "tickformat": "~s", "dtick": None}
    layout["yaxis"] |= {"range": None, "tickformat": ".3~f"}
    return {"layout": layout, "views": [[_learning(curve, rank) for rank, curve in enumerate(content["curves"])]]}


def _learning(curve: Mapping[str, Any], rank: int) -> dict[str, Any]:
    points = [row for row in curve["points"] if row["roc_auc"]["value"] is not None]
    value = [row["roc_auc"]["value"] for row in points]
    ends = {end: [row["roc_auc"][end] or row["roc_auc"]["value"] for row in points] for end in ("low", "high")}
    line = line_of(rank) | {"width": 2}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(curve["name"]),
        "x": [row["groups"] for row in points],
        "y": [round(v, 4) for v in value],
        "customdata": [round(row["images"]) for row in points],
        "line": line,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round(high - v, 4) for v, high in zip(value, ends["high"], strict=True)],
            "arrayminus": [round(v - low, 4) for v, low in zip(value, ends["low"], strict=True)],
            "color": line["color"],
            "thickness": 1,
            "width": 0,
        },
        "hovertemplate": "<b>%{fullData.name}</b><br>%{x} groups, %{customdata} images"
        "<br>ROC AUC %{y:.3f}<extra></extra>",
    }


def draw_learning(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Return {"learning-curve.svg", "learning-curve.png"}."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return {f"learning-curve.{suffix}": data for suffix, data in saved(learning_plot(content)).items()}


def learning_plot(content: Mapping[str, Any], size: tuple[float, float] = (4.6, 3.6)) -> Figure:
    """Return the learning curves with their intervals; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel=f"{plural(content['unit'])} to learn from", ylabel="ROC AUC, out of fold")
    axes.set_xscale("log")
    for i, curve in enumerate(content["curves"]):
        points = [row for row in curve["points"] if row["roc_auc"]["low"] is not None]
        x = [row["groups"] for row in points]
        value, low, high = ([row["roc_auc"][end] for row in points] for end in ("value", "low", "high"))
        colour, dash = COLOURS[i % len(COLOURS)], LINES[i % len(LINES)]  # told apart in grey too
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, value, dash, marker="o", markersize=3, color=colour, label=printable(curve["name"]))
    axes.legend(loc="lower right", fontsize=7, framealpha=0.8, edgecolor="none")
    return figure
