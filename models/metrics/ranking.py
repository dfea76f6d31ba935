"""Areas under the ROC and the PR curve of many weighted replicates from one sorting."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranking", "areas", "ranking", "ratio"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Ranking(NamedTuple):
    """Pictures by falling score; for each of the m positives, how many come before it and through its ties."""

    order: Ints  # (n,)
    positives: Ints  # (m,) places in `order`
    before: Ints  # (m,) pictures of higher score
    through: Ints  # (m,) pictures of higher or equal score
    positives_before: Ints  # (m,)
    positives_through: Ints  # (m,)


def ranking(positive: NDArray[np.bool_], score: Floats) -> Ranking:
    """Rank pictures by falling `score` (n,), which holds no NaN; `positive` (n,)."""
    order = np.argsort(-score, kind="stable")
    falling = -score[order]
    positives = np.flatnonzero(positive[order])
    before = np.searchsorted(falling, falling[positives], side="left")
    through = np.searchsorted(falling, falling[positives], side="right")
    counted = np.concatenate([[0], np.cumsum(positive[order])])
    return Ranking(order, positives, before, through, counted[before], counted[through])


def areas(weights: Floats, groups: Ints, ranks: Ranking) -> tuple[Floats, Floats]:
    """Return the area under the ROC curve and the average precision of each replicate, (b,) each.

    weights (b, G) whole numbers, groups (n,). Ties count one half in the ROC area (the Mann-Whitney statistic; Bamber
    1975) and share one step of the PR curve. NaN where a replicate lacks a class it needs.
    """
    weight = weights[:, groups[ranks.order]]
    mine = weight[:, ranks.positives]
    seen, hits = _running(weight), _running(mine)
    positive, negative = hits[:, -1], seen[:, -1] - hits[:, -1]
    hits_through, seen_through = hits[:, ranks.positives_through], seen[:, ranks.through]
    above = seen[:, ranks.before] - hits[:, ranks.positives_before] + seen_through - hits_through
    lost = np.einsum("bm,bm->b", mine, above) / 2
    precision = hits_through / np.maximum(seen_through, 1)  # no weight so far: counted with weight 0
    gained = np.einsum("bm,bm->b", mine, precision)
    return 1 - ratio(lost, positive * negative), ratio(gained, positive)


def _running(weight: Floats) -> Floats:
    total = np.zeros((weight.shape[0], weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=total[:, 1:])
    return total


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
