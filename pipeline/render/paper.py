"""Figures for a paper: at a column's width, as PDF, SVG and PNG, told apart without colour, fonts embedded."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from features.progress import printable
from models.metrics import net_benefit, reliability_curve
from models.runs.compare import runs_by_name
from models.runs.examination import first_repeat
from models.runs.record import Run
from models.runs.results import ComparisonResult, Score
from models.runs.scores import shown
from models.runs.summary import plural
from pipeline.render.forest import subgroup_rows
from pipeline.render.page_figures import CURVES, Side, sides
from pipeline.render.plots import COLOURS, STYLE, curve_plot, learning_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.4  # inches, 86 mm: one column of a journal with two
RUNS = 20  # in the forest of the ranking, the first
PAIRS = 8  # images beside their class activation maps, in two columns
PAPER: dict[Any, Any] = STYLE | {
    "font.size": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,  # TrueType, embedded: text stays text, which journals ask for
    "ps.fonttype": 42,
}
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
Content = Mapping[str, Any]


def draw_figures(
    results: ComparisonResult, runs: Sequence[Run], learning: Content | None = None, gallery: Content | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file: the same for the same results.

    `runs` are those that `results` are of; `learning` and `gallery` what `load_extras` found of them, as far as there
    are any. Subgroups have a figure where the data set has columns for them.
    """
    import matplotlib as mpl

    by_name = runs_by_name(runs)
    classes, chosen = results.dataset.classes, by_name[results.chosen.name]
    once = sides(first_repeat(chosen, shown(chosen)), classes)
    ranked = [(row, sides(shown(by_name[row.name]), classes)) for row in results.runs[:4]]
    figures: dict[str, Callable[[], Figure]] = {
        **{kind: partial(curve_plot, kind, ranked, results, (COLUMN, 2.9)) for kind in CURVES},
        "calibration": lambda: _panels(once, _calibration),
        "decision-curve": lambda: _panels(once, _decision),
        "confusion-matrix": lambda: _confusion(results),
        "ranking": lambda: _ranking(results),
    }
    if results.examination.subgroups:
        figures["subgroups"] = lambda: _subgroups(results)
    if learning:
        figures["learning-curve"] = lambda: learning_plot(learning, (COLUMN, 2.7))
    if gallery and gallery["ends"]:
        figures["class-activation-maps"] = lambda: _maps(gallery)
    with mpl.rc_context(PAPER), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font lacks is drawn as boxes
        for name, draw in figures.items():
            yield from _files(name, draw())


def _files(name: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
    for suffix, metadata in METADATA.items():
        target = io.BytesIO()
        figure.savefig(target, format=suffix, dpi=600 if suffix == "png" else 300, metadata=metadata)
        yield f"{name}.{suffix}", target.getvalue()


def _figure(height: float, width: float = COLUMN) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _say(axes: Axes, how: str, text: str, **style: Any) -> None:
    """Set a title or the name of an axis, taken literally: no mathematics between dollars."""
    getattr(axes, f"set_{how}")(printable(text), parse_math=False, **style)


def _panels(views: Sequence[Side], draw: Callable[[Axes, Side], None]) -> Figure:
    """Return one panel, or one a class in two columns."""
    rows = (len(views) + 1) // 2
    figure = _figure(3.0 if len(views) == 1 else 1.75 * rows)
    for i, side in enumerate(views):
        axes = figure.add_subplot(*((1, 1, 1) if len(views) == 1 else (rows, 2, i + 1)))
        draw(axes, side)
        _say(axes, "title", side.label if len(views) > 1 else "", fontsize=6.5)
    handles = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=6, frameon=False)
    return figure


def _calibration(axes: Axes, side: Side) -> None:
    curve = reliability_curve(side.y, side.score, side.groups)
    errors = np.abs(np.stack([curve.observed - curve.low, curve.high - curve.observed]))
    axes.plot([0, 1], [0, 1], ":", color="0.5", linewidth=0.8)
    axes.errorbar(curve.predicted, curve.observed, errors, fmt="o-", color=COLOURS[0], markersize=3, elinewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability", ylabel="observed share")


def _decision(axes: Axes, side: Side) -> None:
    at = np.linspace(0.01, 0.99, 99)
    benefit = net_benefit(side.y, side.score, at, side.groups, folds=side.folds)
    axes.fill_between(at, benefit.low, benefit.high, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(at, benefit.model, color=COLOURS[0], label="act by the model")
    axes.plot(at, benefit.treat_all, "--", color="0.35", linewidth=0.8, label="act on all")
    axes.axhline(0, linestyle=":", color="0.35", linewidth=0.8, label="act on none")
    share = float(side.y.mean())
    axes.set(ylim=(-0.15 * share, 1.08 * share), xlabel="threshold probability", ylabel="net benefit")


def _confusion(results: ComparisonResult) -> Figure:
    counts, names = np.array(results.chosen.confusion), list(results.dataset.classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(2.6 if len(names) == 2 else 3.4)
    axes = figure.add_subplot(xlabel="called", ylabel="really")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.3)
    for (row, column), count in np.ndenumerate(counts):
        told = f"{count:,}\n{_percent(share[row, column])}" if len(names) == 2 else f"{count:,}"
        axes.text(column, row, told, ha="center", va="center", color="white" if share[row, column] > 0.75 else "black")
    axes.set_xticks(range(len(names)), list(map(printable, names)), rotation=0 if len(names) == 2 else 90)
    axes.set_yticks(range(len(names)), list(map(printable, names)))
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    return figure


def _percent(share: float) -> str:
    """Return a share in percent, where 0 and 100 are said of none and of all alone."""
    if 0 < share < 0.005 or 0.995 < share < 1:
        return "< 1 %" if share < 0.5 else "> 99 %"
    return f"{100 * share:.0f} %"


def _ranking(results: ComparisonResult) -> Figure:
    rows = results.runs[:RUNS]
    names = [f"{row.validation_rank}  {row.name}" for row in rows]
    hollow = [bool(row.against_chosen and row.against_chosen.distinguishable) for row in rows]
    where = "test" if results.tested else "out-of-fold"
    return _forest(names, [row.shown["roc_auc"] for row in rows], hollow, f"{where} ROC AUC (95 % interval)")


def _subgroups(results: ComparisonResult) -> Figure:
    rows = subgroup_rows(results)
    names = [f"{column}: {row['name']}" if column else row["name"] for column, row in rows]
    return _forest(
        names, [row["roc_auc"] for _, row in rows], [row["few"] for _, row in rows], "ROC AUC (95 % interval)"
    )


def _forest(names: Sequence[str], scores: Sequence[Score], hollow: Sequence[bool], what: str) -> Figure:
    """Return intervals under each other, a line at the first; a hollow mark tells what the caption says of it."""
    labels = [fill(printable(name), 30) for name in names]
    figure = _figure(0.55 + sum(0.12 + 0.11 * (1 + label.count("\n")) for label in labels))
    axes = figure.add_subplot()
    for place, (score, empty) in enumerate(zip(scores, hollow, strict=True)):
        if (value := score["value"]) is None:
            continue
        ends = [value if (bound := score[end]) is None else bound for end in ("low", "high")]
        axes.plot(ends, [place, place], color=COLOURS[0], linewidth=1)
        face = "white" if empty else COLOURS[0]
        axes.plot(value, place, "s", markersize=3.5, color=COLOURS[0], markerfacecolor=face)
    if scores[0]["value"] is not None:
        axes.axvline(scores[0]["value"], linestyle=":", color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel=what)
    return figure


def _maps(gallery: Content) -> Figure:
    tiles = [tile for line in gallery["lines"] for tile in line["images"][: PAIRS // len(gallery["lines"])]]
    rows = (len(tiles) + 1) // 2
    figure = _figure(0.55 + rows * 1.22)
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[*[1.0] * rows, 0.1])
    for i, tile in enumerate(tiles):
        axes = figure.add_subplot(grid[i // 2, i % 2])
        axes.axis("off")
        both = [np.asarray(_opened(tile[kind]).convert("RGB").resize((224, 224))) for kind in ("image", "map")]
        axes.imshow(np.concatenate(both, axis=1), interpolation="antialiased")
        axes.set_title(_caption(tile), parse_math=False, fontsize=5.5, pad=2)
    scale, ends = figure.add_subplot(grid[-1, :]), gallery["ends"]
    scale.imshow(np.asarray(_opened(gallery["ramp"]).convert("RGB")), aspect="auto")
    scale.axis("off")
    told = printable(f"{ends['against']} … {ends['for']}"), printable(f"{ends['scale']} {ends['unit']}")
    scale.set_title("\n".join(told), parse_math=False, fontsize=5.5, pad=2)
    return figure


def _caption(tile: Content) -> str:
    """Return what an image is and what it was called, in two lines."""
    return f"is {printable(tile['is'])},\ncalled {printable(tile['called'])}"


def _opened(url: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def captions(results: ComparisonResult, names: Sequence[str]) -> str:
    """Return what each figure shows, ready for a paper, for the figures that there are."""
    unit, chosen = results.dataset.grouped_by or "image", results.chosen.name
    where = "on the test images" if results.tested else "out of fold"
    drawn = f"The first {RUNS} of {len(results.runs)} runs" if len(results.runs) > RUNS else "The runs"
    about = {
        "roc": f"ROC curves {where}. The band holds point by point with 95 % confidence (bootstrap over "
        f"{plural(unit)}).",
        "pr": f"Precision-recall curves {where}, as the ROC curves.",
        "calibration": f"Observed share over predicted probability of {chosen} {where}; 95 % intervals by {unit}.",
        "decision-curve": f"Net benefit of acting by {chosen} {where}, with a pointwise 95 % band.",
        "confusion-matrix": f"Images of each class (rows) by decision of {chosen} (columns) {where}"
        f"{results.chosen.again}; shade is the share of the row.",
        "ranking": f"{drawn}, best validation first, {where}; hollow: lower or higher than the first by the test "
        "adjusted for all comparisons.",
        "subgroups": f"ROC AUC of {chosen} by subgroup {where}; hollow: few {plural(unit)} of a class.",
        "learning-curve": f"Out-of-fold ROC AUC over the number of {plural(unit)} learned from, 95 % intervals.",
        "class-activation-maps": "Most confident errors beside their class activation maps: orange within a white line "
        "for, blue within a dotted black one against.",
    }
    return "".join(f"- **{name}**: {about[name]}\n" for name in about if name in names)
