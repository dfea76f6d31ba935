"""The learning curve as a plot for papers and as a figure of the page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.progress import printable
from models.runs.summary import plural

__all__ = ["FILE", "draw_learning", "learning_figure", "load_learning"]

FILE = "learning-curve.json"  # beside the page of `compare`, which shows it


def load_learning(folder: Path, manifest: str) -> dict[str, Any] | None:
    """Return the learning curves that were drawn for the same pictures, labels and splits; None without any."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return content if content["manifest"] == manifest and content["curves"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def learning_figure(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figure of the page: ROC AUC over the number of groups, on a logarithmic axis, with intervals."""
    from pipeline.render.figures import blank_layout, line_of

    layout = blank_layout(f"{plural(content['unit'])} to learn from", "ROC AUC")
    layout["xaxis"] |= {"type": "log", "range": None, "tickformat": "~s", "dtick": None}
    layout["yaxis"] |= {"range": None, "tickformat": ".3~f"}
    layout |= {"showlegend": len(content["curves"]) > 1}
    traces = []
    for rank, curve in enumerate(content["curves"]):
        points = [row for row in curve["points"] if row["roc_auc"]["value"] is not None]
        value = [row["roc_auc"]["value"] for row in points]
        ends = {end: [row["roc_auc"][end] or row["roc_auc"]["value"] for row in points] for end in ("low", "high")}
        line = line_of(rank) | {"width": 2}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(curve["name"]),
                "x": [row["groups"] for row in points],
                "y": [round(v, 4) for v in value],
                "customdata": [round(row["pictures"]) for row in points],
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
                "hovertemplate": "<b>%{fullData.name}</b><br>%{x} groups, %{customdata} pictures"
                "<br>ROC AUC %{y:.3f}<extra></extra>",
            }
        )
    return {"layout": layout, "views": [traces]}


def draw_learning(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Return {"learning-curve.svg", "learning-curve.png"}."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pipeline.render.plots import COLOURS, LINES, STYLE, saved

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=f"{plural(content['unit'])} to learn from", ylabel="ROC AUC, out of fold")
        axes.set_xscale("log")
        for i, curve in enumerate(content["curves"]):
            points = [row for row in curve["points"] if row["roc_auc"]["low"] is not None]
            x = [row["groups"] for row in points]
            value, low, high = ([row["roc_auc"][end] for row in points] for end in ("value", "low", "high"))
            colour, dash = COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, value, dash, marker="o", markersize=3, color=colour, label=printable(curve["name"]))
        axes.legend(loc="lower right", fontsize=7, framealpha=0.8, edgecolor="none")
        return {f"learning-curve.{suffix}": data for suffix, data in saved(figure).items()}
