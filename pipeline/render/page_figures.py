"""The figures of the page as plotly's own JSON: {"layout": ..., "views": [traces, ...]}, one view per class.

Colours are CSS variables, "var(--c0)", which the page resolves, so that figures follow light and dark. Traces that can
be switched off say whose they are: `meta` is {"run": place in the ranking}.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics import Band, net_benefit, pr_curve_band, reliability_curve, roc_curve_band
from models.runs.costs import costs
from models.runs.results import RunResult
from models.validation.predictions import Predictions

GRID = 201  # points of a curve
POSITIONS = 1500  # of the slider, at most
Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """A row of CURVES: how a curve is computed, and what its axes are."""

    band: Callable[..., Band]
    title: str
    x: str
    y: str


CURVES = {
    "roc": Curve(roc_curve_band, "ROC curve", "1 − specificity", "sensitivity"),
    "pr": Curve(pr_curve_band, "Precision and recall", "recall (sensitivity)", "precision (PPV)"),
}


class Side(NamedTuple):
    """One class against the rest, as one run sees it."""

    label: str  # the class
    y: NDArray[np.int64]  # (n,) 1 for that class
    score: Floats  # (n,)
    groups: NDArray[np.str_]  # (n,)
    folds: NDArray[np.int64]  # (n,)

    def band(self, kind: str, **settings: Any) -> Band:
        """Return a curve of CURVES with its band; `n_bootstrap=0` makes the curve alone."""
        return CURVES[kind].band(self.y, self.score, self.groups, folds=self.folds, grid=GRID, **settings)

    def steps(self, kind: str) -> tuple[Floats, Floats]:
        """Return the points that a curve is drawn through, x and y.

        The ROC curve of one fold has those of its own thresholds, from (0, 0); the mean of several folds is on a grid.
        """
        if kind != "roc" or len(np.unique(self.folds)) > 1 or len(np.unique(self.y)) < 2:
            curve = self.band(kind, n_bootstrap=0)
            first = [0.0] if kind == "roc" and not np.isnan(curve.value[0]) else []
            return np.append(first, curve.x), np.append(first, curve.value)
        from sklearn.metrics import roc_curve

        alarms, hits, _ = roc_curve(self.y, self.score)
        return alarms, hits


def sides(part: Predictions, classes: Sequence[str]) -> list[Side]:
    """Return the positive one of two classes, or each of more, against the rest."""
    positives = [1] if len(classes) == 2 else range(len(classes))
    return [
        Side(classes[k], (part.y == k).astype(np.int64), part.proba[:, k], part.groups, part.fold) for k in positives
    ]


def operating_table(side: Side, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Return what the slider moves over: thresholds, rising, with the true and false positives at each.

    An image is positive from its threshold up. There is a threshold between each two neighbouring scores, one that
    calls every image positive and one above all; `chosen` thresholds (name -> value) are among them as they are.
    """
    levels = np.unique(side.score)
    between = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [np.nextafter(levels[-1], 2)]])
    if len(between) > POSITIONS:
        between = between[np.linspace(0, len(between) - 1, POSITIONS).round().astype(np.int64)]
    thresholds = np.unique(np.concatenate([between, list(chosen.values())]))
    return {
        "label": side.label,
        "thresholds": thresholds.tolist(),
        "true_positives": _from(side.score[side.y == 1], thresholds),
        "false_positives": _from(side.score[side.y == 0], thresholds),
        "positives": int(side.y.sum()),
        "negatives": int((1 - side.y).sum()),
        "presets": {name: int(np.searchsorted(thresholds, at)) for name, at in chosen.items()},
    }


def _from(score: Floats, thresholds: Floats) -> list[int]:
    counts: list[int] = (len(score) - np.searchsorted(np.sort(score), thresholds, side="left")).tolist()
    return counts


Figure = dict[str, Any]
Trace = dict[str, Any]

BINS = 25  # of the score histogram
DASHES = ("solid", "dash", "dot", "dashdot")
OTHERS = 6  # colours --c1 ... for runs that were not chosen
HOVER = "<b>%{fullData.name}</b><br>%{xaxis.title.text} %{x:.3f}<br>%{yaxis.title.text} %{y:.3f}<extra></extra>"
LABELLED = 8  # runs in the cost figure that have their names there; more have numbers
MARKERS = {
    "chosen": {"color": "var(--c0)", "size": 13},
    "no detectable difference": {"color": "var(--c2)", "size": 10},
    "others": {"color": "var(--c1)", "size": 9, "symbol": "diamond"},
}
GREY = {"color": "var(--muted)", "width": 1.2, "dash": "dot"}


def line_of(rank: int) -> dict[str, Any]:
    """Return colour and dash of the run at a place of the ranking, 0 for the chosen one."""
    if rank == 0:
        return {"color": "var(--c0)", "dash": "solid", "width": 3}
    return {"color": f"var(--c{1 + (rank - 1) % OTHERS})", "dash": DASHES[(rank - 1) // OTHERS % 4], "width": 1.6}


def curve_figure(kind: str, names: Sequence[str], runs: Sequence[Sequence[Side]], **bootstrap: Any) -> Figure:
    """Return the ROC or PR figure (`kind` of CURVES) of runs in the order of the ranking, a band around the first.

    `runs` holds the sides of each run, which all have the same classes; `bootstrap` is n_bootstrap, level and seed.
    """
    row = CURVES[kind]
    layout = blank_layout(row.x, row.y)
    return {"layout": layout, "views": [_curves(kind, names, view, bootstrap) for view in zip(*runs, strict=True)]}


def _curves(kind: str, names: Sequence[str], view: Sequence[Side], bootstrap: Mapping[str, Any]) -> list[Trace]:
    chosen = view[0].band(kind, **bootstrap)
    traces = [
        _reference(kind, view[0]),
        *_band(chosen),
    ]
    for rank in reversed(range(len(view))):  # the chosen one on top
        x, value = view[rank].steps(kind)
        name = {"name": html.escape(names[rank]), "hovertemplate": HOVER, "meta": {"run": rank}}
        traces.append(_line(x, value, line_of(rank), **name))
    return traces


def _reference(kind: str, side: Side) -> Trace:
    """Return the line of chance."""
    share = float(side.y.mean())
    ends = {"roc": [0.0, 1.0], "pr": [share, share]}[kind]
    return _line(np.array([0.0, 1.0]), np.array(ends), GREY, name="chance", hoverinfo="skip")


def _band(band: Any) -> list[Trace]:
    """Return the area between the bounds, nothing where the images cannot tell."""
    if np.isnan(band.low).any():
        return []
    x, y = np.concatenate([band.x, band.x[::-1]]), np.concatenate([band.high, band.low[::-1]])
    fill: dict[str, Any] = {"fill": "toself", "fillcolor": "var(--band)", "hoverinfo": "skip", "showlegend": False}
    fill |= {"meta": {"run": 0}, "name": "band"}
    return [_line(x, y, {"width": 0}, **fill)]


def reliability_figure(views: Sequence[Side], prevalence: float | None = None) -> Figure:
    """Return how often a class really occurs among images of each predicted probability, at a stated prevalence."""
    layout = blank_layout(f"predicted probability{_at(prevalence)}", "share that really is")
    return {"layout": layout, "views": [_reliability(side, prevalence) for side in views]}


def _at(prevalence: float | None) -> str:
    return "" if prevalence is None else f" at a prevalence of {prevalence:.3g}"


def _reliability(side: Side, prevalence: float | None) -> list[Trace]:
    curve = reliability_curve(side.y, side.score, side.groups, prevalence=prevalence)
    sizes = 6 + 16 * np.sqrt(curve.images / curve.images.max())
    hover = "predicted %{x:.3f}<br>really %{y:.3f}<br>%{text} images<extra></extra>"
    errors = {
        "type": "data",
        "symmetric": False,
        "array": _short(curve.high - curve.observed),
        "arrayminus": _short(curve.observed - curve.low),
        "color": "var(--c0)",
        "thickness": 1.2,
        "width": 0,
    }
    points = _line(curve.predicted, curve.observed, line_of(0) | {"width": 1.5}, name="chosen", hovertemplate=hover)
    marker = {"size": _short(sizes), "color": "var(--c0)", "line": {"width": 0}, "opacity": 0.85}
    points |= {
        "mode": "lines+markers",
        "cliponaxis": False,
        "error_y": errors,
        "marker": marker,
        "text": curve.images.tolist(),
    }
    return [_line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), GREY, name="perfect", hoverinfo="skip"), points]


def decision_figure(views: Sequence[Side], prevalence: float | None = None, *, level: float = 0.95) -> Figure:
    """Return the net benefit of acting on the chosen run's probabilities, against acting always and never.

    At the images' own class balance, or at a stated prevalence; `level` is that of the band.
    """
    layout = blank_layout(f"threshold probability{_at(prevalence)}", "net benefit", legend=True)
    layout["yaxis"] |= {"range": None, "tickformat": ".2f"}
    return {"layout": layout, "views": [_decision(side, prevalence, level) for side in views]}


def _decision(side: Side, prevalence: float | None, level: float) -> list[Trace]:
    thresholds = np.linspace(0.01, 0.99, 99)
    benefit = net_benefit(
        side.y, side.score, thresholds, side.groups, folds=side.folds, prevalence=prevalence, level=level
    )
    floor = -0.1 * float(side.y.mean() if prevalence is None else prevalence)
    rows = (
        ("act on every image", benefit.treat_all, GREY | {"dash": "dash"}),
        ("act on none", np.zeros(99), GREY),
        ("act by the model", benefit.model, line_of(0)),
    )
    kept = [(name, np.where(value >= floor, value, np.nan), line) for name, value, line in rows]
    lines = [_line(benefit.thresholds, value, line, name=name, hovertemplate=HOVER) for name, value, line in kept]
    seen = benefit.model >= floor
    low, high = (np.maximum(bound, floor)[seen] for bound in (benefit.low, benefit.high))
    band = _band(Band(benefit.thresholds[seen], benefit.model[seen], low, high))
    return [*(trace | {"meta": None} for trace in band), *lines]


def score_figure(side: Side, rest: str) -> Figure:
    """Return how the chosen run's probabilities are spread in each of two classes."""
    edges = np.linspace(0, 1, BINS + 1)
    layout = blank_layout(f"probability of {html.escape(side.label)}", "images", legend=True)
    layout["yaxis"] |= {"range": None, "tickformat": ",d", "rangemode": "tozero"}
    layout |= {"barmode": "overlay", "bargap": 0.06}
    traces = [
        {
            "type": "bar",
            "name": html.escape(name),
            "x": _short((edges[1:] + edges[:-1]) / 2),
            "y": np.histogram(side.score[side.y == k], edges)[0].tolist(),
            "marker": {"color": colour, "opacity": 0.7, "line": {"width": 0}},
            "hovertemplate": "%{y} images around %{x:.2f}<extra>%{fullData.name}</extra>",
        }
        for k, name, colour in ((0, rest, "var(--c1)"), (1, side.label, "var(--c0)"))
    ]
    return {"layout": layout, "views": [traces]}


def cost_figure(rows: Sequence[RunResult]) -> Figure:
    """Return the ROC AUC of every run over the seconds it took to train, with the line of what nothing beats.

    Few runs have their names beside their points, many their places in the ranking.
    """
    points = _points(rows)
    layout = blank_layout("seconds of training, folds and final fit", "ROC AUC", legend=True)
    decades = np.log10(max(p["x"] for p in points) / min(p["x"] for p in points)) if points else 0.0
    layout["xaxis"] |= {"type": "log", "range": None, "tickformat": "~g", "dtick": 1 if decades > 1 else None}
    layout["yaxis"] |= {"range": None, "tickformat": ".3~f"}
    clouds = [_cloud(kind, [p for p in points if p["kind"] == kind], marker) for kind, marker in MARKERS.items()]
    return {"layout": layout, "views": [[_front(points), *(cloud for cloud in clouds if cloud["x"])]]}


def _points(rows: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return what is drawn of each run that has an area."""
    several = len({row.record.backbone for row in rows}) > 1
    points: list[dict[str, Any]] = []
    for row, cost in zip(rows, costs([row.record for row in rows]), strict=True):
        area, versus, record = row.shown["roc_auc"], row.against_chosen, row.record
        kind = "no detectable difference" if versus and not versus.distinguishable else "others"
        named = f"{record.head}, {record.backbone}" if several else record.head
        point: dict[str, Any] = {
            "name": html.escape(row.name),
            "label": html.escape(named) if len(rows) <= LABELLED else str(row.validation_rank),
            "x": max(cost.seconds, 1e-3),
            "area": area,
            "kind": "chosen" if row.validation_rank == 1 else kind,
        }
        points += [point] if area["value"] is not None else []
    middle = _middle([p["x"] for p in points])
    return [p | {"place": "bottom left" if p["x"] > middle else "bottom right"} for p in points]


def _middle(seconds: Sequence[float]) -> float:
    """Return where labels change sides on a logarithmic axis, so that they stay inside."""
    return float(np.sqrt(min(seconds, default=1.0) * max(seconds, default=1.0)))


def _unbeaten(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runs that none beats in both time and area, by rising time."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["x"], -p["area"]["value"])):
        if not front or point["area"]["value"] > front[-1]["area"]["value"]:
            front.append(point)
    return front


def _front(points: Sequence[Mapping[str, Any]]) -> Trace:
    """Return the steps through the unbeaten runs, on to the slowest of all."""
    front = _unbeaten(points)
    steps = [(p["x"], p["area"]["value"]) for p in front]
    steps += [(max(p["x"] for p in points), steps[-1][1])] if steps else []
    x, y = (np.array([step[i] for step in steps]) for i in (0, 1))
    line = GREY | {"shape": "hv", "dash": "solid"}
    return _line(x, y, line, name="best for the time", hoverinfo="skip")


def _cloud(name: str, points: Sequence[Mapping[str, Any]], marker: Mapping[str, Any]) -> Trace:
    errors = {"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": marker["color"]}
    areas = [(p["area"]["value"], p["area"]["low"], p["area"]["high"]) for p in points]
    up, down = ([abs((row[end] or row[0]) - row[0]) for row in areas] for end in (2, 1))
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": _short(np.array([p["x"] for p in points])),
        "y": _short(np.array([row[0] for row in areas])),
        "text": [p["label"] for p in points],
        "textposition": [p["place"] for p in points],
        "textfont": {"size": 11, "color": "var(--muted)"},
        "customdata": [p["name"] for p in points],
        "marker": dict(marker),
        "error_y": errors | {"array": _short(np.array(up)), "arrayminus": _short(np.array(down))},
        "hovertemplate": "<b>%{customdata}</b><br>%{x:.3g} s<br>ROC AUC %{y:.3f}<extra></extra>",
        "cliponaxis": False,
    }


def _line(x: NDArray[np.float64], y: NDArray[np.float64], line: Mapping[str, Any], **more: Any) -> Trace:
    return {"type": "scatter", "mode": "lines", "x": _short(x), "y": _short(y), "line": dict(line), **more}


def blank_layout(x: str, y: str, *, legend: bool = False) -> dict[str, Any]:
    """Return a layout with two titled axes from 0 to 1, and a legend where it is asked for."""
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False, "automargin": True}
    return {
        "xaxis": axis | {"title": {"text": x}, "range": [-0.02, 1.02]},
        "yaxis": axis | {"title": {"text": y}, "range": [-0.02, 1.02]},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"namelength": -1},
    }


def _short(values: NDArray[Any]) -> list[float | None]:
    """Return numbers of four decimals, which is finer than a screen; NaN as None."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


MOST = 4  # networks shown, the best by validation
LOSS, AREA, WATCHED = 1, 2, 3  # places in an epoch of the history
WORDS = {LOSS: "training loss", AREA: "validation ROC AUC", WATCHED: "validation log loss"}


def training_figures(rows: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """Return {"training-loss", "training-auc", "training-log-loss"}: a line for each training.

    Thin for a fold, strong for the training on all images or the only one.

    `rows` are the runs of a comparison in the order of the ranking; nothing where no network was fine-tuned.
    """
    thawed = [row for row in rows if row.record.history][:MOST]
    if not thawed:
        return {}
    places = {"training-loss": LOSS, "training-auc": AREA, "training-log-loss": WATCHED}
    return {name: _figure(thawed, place) for name, place in places.items()}


def _figure(rows: Sequence[RunResult], place: int) -> dict[str, Any]:
    layout = blank_layout("epoch", WORDS[place], legend=True)
    layout["xaxis"] |= {"range": None, "tickformat": "d", "dtick": None}
    layout["yaxis"] |= {"range": None, "tickformat": ".3~f"}
    traces = [trace for rank, row in enumerate(rows) for trace in _lines(row, place, line_of(rank))]
    return {"layout": layout, "views": [traces]}


def _lines(row: RunResult, place: int, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each training of a network, that on all images last and on top where there is one."""
    histories, folds = row.record.history, row.record.folds * row.record.repeats
    named = [(f"fold {i}", h, len(histories) == 1) for i, h in enumerate(histories[:folds], start=1)]
    named += [("all images", history, True) for history in histories[folds:]]
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if strong else "lines",
            "name": html.escape(row.name),
            "legendgroup": row.name,
            "showlegend": title == named[-1][0],
            "x": [epoch[0] for epoch in history],
            "y": [None if epoch[place] is None else round(epoch[place], 5) for epoch in history],
            "line": {**line, "width": 2.5 if strong else 1},
            "opacity": 1 if strong else 0.5,
            "hovertemplate": f"<b>{title}</b><br>epoch %{{x}}<br>{WORDS[place]} %{{y:.4f}}<extra></extra>",
        }
        for title, history, strong in named
    ]
