"""How fine-tuned networks were trained: loss and validation AUC of every epoch, as figures of the page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["training_figures"]

MOST = 4  # networks shown, the best by validation
LOSS, AREA = 1, 2  # places in an epoch of the history
WORDS = {LOSS: "training loss", AREA: "validation ROC AUC"}


def training_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {"training-loss", "training-auc"}: a thin line for each fold, a strong one for the training on all.

    `rows` are the runs of a comparison in the order of the ranking; nothing where no network was fine-tuned.
    """
    thawed = [row for row in rows if row["history"]][:MOST]
    if not thawed:
        return {}
    return {"training-loss": _figure(thawed, LOSS), "training-auc": _figure(thawed, AREA)}


def _figure(rows: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    from pipeline.render.figures import blank_layout, line_of

    layout = blank_layout("epoch", WORDS[place])
    layout["xaxis"] |= {"range": None, "tickformat": "d", "dtick": None}
    layout["yaxis"] |= {"range": None, "tickformat": ".3~f"}
    layout |= {"showlegend": True}
    traces = [trace for rank, row in enumerate(rows) for trace in _lines(row, place, line_of(rank))]
    return {"layout": layout, "views": [traces]}


def _lines(row: Mapping[str, Any], place: int, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each training of a network, that on all pictures last and on top."""
    *folds, last = row["history"]
    named = [*((f"fold {i}", h, False) for i, h in enumerate(folds, start=1)), ("all pictures", last, True)]
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if strong else "lines",
            "name": html.escape(row["name"]),
            "legendgroup": row["name"],
            "showlegend": strong,
            "x": [epoch[0] for epoch in history],
            "y": [None if epoch[place] is None else round(epoch[place], 5) for epoch in history],
            "line": {**line, "width": 2.5 if strong else 1},
            "opacity": 1 if strong else 0.5,
            "hovertemplate": f"<b>{title}</b><br>epoch %{{x}}<br>{WORDS[place]} %{{y:.4f}}<extra></extra>",
        }
        for title, history, strong in named
    ]
