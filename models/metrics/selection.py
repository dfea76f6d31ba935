"""What the best of several models is worth once it is remembered that it was chosen on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import resamples
from models.metrics.intervals import Interval
from models.metrics.registry import METRICS
from models.metrics.sample import make_sample
from models.metrics.scoring import values

__all__ = ["score_of_the_chosen"]


def score_of_the_chosen(
    y: ArrayLike,
    probas: Sequence[ArrayLike],
    groups: ArrayLike | None = None,
    *,
    metric: str = "roc_auc",
    n_bootstrap: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the score that choosing the best of these models gives on pictures which had no part in the choice.

    y (n,), probas M times (n, K) out-of-fold predictions, groups (n,). Tsamardinos, Greasidou & Borboudakis 2018
    (Machine Learning 107:1895, BBC-CV): in each bootstrap over groups the model that is best on the drawn groups is
    scored on those not drawn. No model is trained again. Bounds are percentiles, wide because a third of the groups
    are scored at a time; NaN where no draw leaves every class on both sides. Raises BadPredictions.
    """
    row = {metric: METRICS[metric]}
    samples = [make_sample(y, proba, groups) for proba in probas]
    drawn = []
    for weights in resamples(samples[0], n_bootstrap, seed):
        inside = np.stack([values(row, sample, weights)[metric] for sample in samples])
        outside = np.stack([values(row, sample, (weights == 0).astype(np.float64))[metric] for sample in samples])
        usable = ~(np.isnan(inside).any(axis=0) | np.isnan(outside).any(axis=0))
        inside, outside = inside[:, usable] * row[metric].direction, outside[:, usable]
        drawn.append(outside[inside.argmax(axis=0), np.arange(outside.shape[1])])
    scores = np.concatenate(drawn)
    if not len(scores):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))
