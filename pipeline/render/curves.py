"""The numbers behind the figures: curves of one class against the rest, and the operating points of the slider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics import Band, pr_curve_band, roc_curve_band
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

    def band(self, kind: str, **settings: Any) -> Band:
        """Return a curve of CURVES with its band; `n_bootstrap=0` makes the curve alone."""
        return CURVES[kind].band(self.y, self.score, self.groups, grid=GRID, **settings)


def sides(part: Predictions, classes: Sequence[str]) -> list[Side]:
    """Return the positive one of two classes, or each of more, against the rest."""
    positives = [1] if len(classes) == 2 else range(len(classes))
    return [Side(classes[k], (part.y == k).astype(np.int64), part.proba[:, k], part.groups) for k in positives]


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
