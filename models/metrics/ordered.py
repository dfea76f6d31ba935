"""Scores of classes that are ordered grades: how far decisions are from the truth, and not only whether they hit it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.metrics.bootstrap import correlation_interval
from models.metrics.registry import Metric, all_groups, mean_loss
from models.metrics.sample import Floats, Replicates, Sample, ratio


def ordered_metrics(ranks: Sequence[int]) -> dict[str, Metric]:
    """Return the metrics of ordered grades, as rows of METRICS; `ranks` (K,) is the place of each class in the order.

    Quadratic weighted kappa: the agreement of true and decided grades beyond chance, where a miss by two grades counts
    four times a miss by one (Cohen 1968, Psychological Bulletin 70:213). Mean absolute error: grades between the two.
    """
    place = np.asarray(ranks, dtype=np.int64)

    def errors(sample: Sample) -> Floats:
        off: Floats = np.abs(place[sample.y] - place[sample.decision]).astype(np.float64)
        return off

    return {
        "kappa": Metric(
            "Quadratic weighted kappa", +1, lambda r: _kappa(r, place), all_groups, interval=correlation_interval
        ),
        "grades_off": mean_loss("Mean absolute error in grades", errors),
    }


def _kappa(replicates: Replicates, place: NDArray[np.int64]) -> Floats:
    """Return the quadratic weighted kappa of each replicate, (b,); NaN where all images are of one grade and hit."""
    counts = replicates.confusion
    weights = np.square(place[:, None] - place).astype(np.float64)
    by_chance = np.einsum("bi,bj,ij->b", counts.sum(axis=2), counts.sum(axis=1), weights) / replicates.total
    return 1 - ratio(np.einsum("bij,ij->b", counts, weights), by_chance)
