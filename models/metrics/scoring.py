"""Every metric of one model's predictions, with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import resamples
from models.metrics.intervals import Interval
from models.metrics.registry import METRICS, Metric
from models.metrics.sample import Floats, Replicates, Sample, make_sample

__all__ = ["score", "values"]


def score(
    y: ArrayLike,
    proba: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    threshold: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return each metric with its confidence interval.

    y (n,) class numbers; proba (n, K); groups (n,) patients, slides: what is independent of each other, None where each
    picture is. The binary ROC AUC has DeLong's interval (Obuchowski's for groups), everything else one from
    `n_bootstrap` replicates over groups (module `intervals`). Values are NaN where y lacks the class they need, bounds
    also where a metric rests on a single group or there are no replicates. Raises BadPredictions.
    """
    sample = make_sample(y, proba, groups, threshold=threshold)
    value = {name: float(row[0]) for name, row in values(METRICS, sample, np.ones((1, sample.n_groups))).items()}
    blocks = [values(METRICS, sample, weights) for weights in resamples(sample, n_bootstrap, seed)]
    intervals = {}
    for name, metric in METRICS.items():
        replicates = np.concatenate([block[name] for block in blocks] or [np.empty(0)])
        drawn = metric.interval(value[name], replicates, level, metric.evidence(sample))
        intervals[name] = (metric.analytic and metric.analytic(sample, level)) or drawn
    return intervals


def values(metrics: Mapping[str, Metric], sample: Sample, weights: Floats) -> dict[str, Floats]:
    """Return each metric of each replicate, (b,), for group weights (b, G)."""
    replicates = Replicates(sample, weights)
    return {name: metric.function(replicates) for name, metric in metrics.items()}
