"""Operating points (decision thresholds) and decision curves (net benefit)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.sample import BadPredictions, Floats


class NetBenefit(NamedTuple):
    """A decision curve: net benefit of treating by the model, and of treating all, at each threshold."""

    thresholds: Floats  # (t,)
    model: Floats  # (t,)
    treat_all: Floats  # (t,)


def operating_points(y: ArrayLike, score: ArrayLike, *, sensitivity: float = 0.95) -> dict[str, float]:
    """Choose operating points, thresholds for `score >= threshold`, on out-of-fold predictions, never on test images.

    y (n,) of 0 and 1, score (n,). "youden" has the highest sensitivity + specificity - 1 (Youden 1950), the higher
    threshold of equals; "sensitivity>=0.95" the highest specificity with at least that sensitivity. A threshold lies
    halfway to the next lower score, for new images' sake. NaN where y has one class only.
    """
    names = ("youden", f"sensitivity>={sensitivity:g}")
    positive, scores = np.asarray(y) == 1, np.asarray(score, dtype=np.float64)
    if positive.all() or not positive.any():
        return dict.fromkeys(names, np.nan)
    levels, place = np.unique(scores, return_inverse=True)
    hits = np.bincount(place, positive)[::-1].cumsum() / positive.sum()
    alarms = np.bincount(place, ~positive)[::-1].cumsum() / (~positive).sum()
    lower = np.concatenate([levels[:1], levels[:-1]])
    halfway = (levels + lower) / 2
    thresholds = np.where(halfway > lower, halfway, levels)[::-1]
    reached = int(np.argmax(hits >= sensitivity - 1e-12))
    return {names[0]: float(thresholds[np.argmax(hits - alarms)]), names[1]: float(thresholds[reached])}


def net_benefit(y: ArrayLike, score: ArrayLike, thresholds: ArrayLike) -> NetBenefit:
    """Return the decision curve of Vickers & Elkin 2006: TP/n - FP/n * t/(1 - t) at each threshold t.

    y (n,) of 0 and 1, score (n,) calibrated probabilities, thresholds (t,) in 0 <= t < 1. Raises BadPredictions.
    """
    positive, scores = np.asarray(y) == 1, np.asarray(score, dtype=np.float64)
    at = np.asarray(thresholds, dtype=np.float64)
    if not len(positive) or not ((at >= 0) & (at < 1)).all():
        raise BadPredictions(f"expected images and thresholds 0 <= t < 1, got {len(positive)} and {at[:9].tolist()}")
    treated = scores >= at[:, None]
    odds = at / (1 - at)
    model = (treated & positive).mean(axis=1) - (treated & ~positive).mean(axis=1) * odds
    return NetBenefit(at, model, positive.mean() - (~positive).mean() * odds)
