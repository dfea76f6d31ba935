"""Pairs of pictures with the same bytes, and pairs that show the same picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.images.phash import hash_bits
from models.audit.alignment import likenesses
from models.audit.neighbours import best_matches
from models.audit.subject import Subject, codes

__all__ = ["NEAR_LIMITS", "Pairs", "Thresholds", "bundles", "exact_pairs", "near_pairs"]

Rows = NDArray[np.int64]
Step = Callable[[str], Callable[[int, int], None]]  # what is being done -> a function (done, total)

NEAR_LIMITS = (0.85, 0.93)  # of the threshold: what is above the second is the same picture in any set
_SPREADS = 6.0  # robust standard deviations above pairs that cannot be duplicates
_SAMPLE = 1000  # pictures that those pairs are sought for
_NET_FEATURES, _NET_HASH = 0.5, 0.95  # quantiles of those pairs above which a pair is looked at closely


class Pairs(NamedTuple):
    """Pairs of rows; `first` is the one that is trained on, where one is and the other is not."""

    first: Rows  # (m,)
    second: Rows  # (m,)
    likeness: NDArray[np.float64]  # (m,) 1 for the same bytes

    def take(self, at: NDArray[np.bool_] | Rows) -> Pairs:
        """Return the chosen pairs."""
        return Pairs(self.first[at], self.second[at], self.likeness[at])


class Thresholds(NamedTuple):
    """What near-duplicates were sought by, all from pairs of different classes."""

    cosine: float  # of standardised features, from which a pair is looked at closely
    hash_bits: int  # of 63 that may differ for the same
    likeness: float  # after alignment, from which a pair is reported


def exact_pairs(subject: Subject) -> Pairs:
    """Return each picture with the same bytes as another, paired with the one that is trained on, else the first."""
    rank = np.lexsort((np.arange(len(subject.ids)), subject.order, subject.content))
    content = subject.content[rank]
    starts = np.flatnonzero(np.r_[True, content[1:] != content[:-1]])
    centre = rank[np.repeat(starts, np.diff(np.r_[starts, len(rank)]))]
    others = rank != centre
    return Pairs(centre[others], rank[others], np.ones(int(others.sum())))


def near_pairs(subject: Subject, *, seed: int = 0, step: Step) -> tuple[Pairs, Thresholds]:
    """Return the pairs that show the same picture with other bytes, most alike first, and the thresholds.

    Candidates are the nearest pictures by features and by perceptual hash, of every picture in every split; each is
    laid over the other and compared pixel by pixel. Pairs of one group with one label in one split are not sought.
    """
    thumbnails = subject.thumbnails
    if thumbnails is None:
        raise ValueError("near-duplicates need thumbnails")
    directions, _ = subject.standardised
    bits = hash_bits(thumbnails)
    signs = (np.where(bits, 1, -1) / np.sqrt(bits.shape[1])).astype(np.float32)
    thresholds, (net, hash_net) = _thresholds(subject, directions, signs, seed, step)
    parts = [np.flatnonzero(subject.order == s) for s in np.unique(subject.order)]
    keys = (subject.content, subject.alike)
    seen: list[Rows] = []
    for name, units, least in (("features", directions, net), ("hashes", signs, hash_net)):
        for found in best_matches(units, keys, parts=parts, progress=step(f"compare {name}")):
            close = found.similarity >= least
            seen.append(np.stack([found.row[close], found.nearest[close]], 1))
    pairs = np.unique(np.sort(np.concatenate(seen), 1), axis=0)
    values = likenesses(thumbnails, pairs[:, 0], pairs[:, 1], progress=step("lay over each other"))
    same = np.flatnonzero(values >= thresholds.likeness)
    same = same[np.argsort(-values[same], kind="stable")]
    return _trained_first(subject, pairs[same], values[same]), thresholds


def _trained_first(subject: Subject, pairs: Rows, values: NDArray[np.float64]) -> Pairs:
    swap = subject.order[pairs[:, 0]] > subject.order[pairs[:, 1]]
    first, second = np.where(swap, pairs[:, 1], pairs[:, 0]), np.where(swap, pairs[:, 0], pairs[:, 1])
    return Pairs(first, second, values)


def _thresholds(
    subject: Subject, directions: NDArray[np.float32], signs: NDArray[np.float32], seed: int, step: Step
) -> tuple[Thresholds, tuple[float, float]]:
    """Measure how alike pictures of different classes get: they are no duplicates, but for the odd conflict.

    The threshold of the likeness is the median plus six robust standard deviations (1.4826 MAD) on Fisher's scale,
    artanh, of the nearest picture of another class, within NEAR_LIMITS.
    """
    assert subject.thumbnails is not None
    n = len(subject.ids)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:_SAMPLE])
    by_features, by_hash = (best_matches(u, (subject.y,), rows=rows)[0] for u in (directions, signs))
    values = likenesses(subject.thumbnails, rows, by_features.nearest, progress=step("compare classes"))
    scale = np.arctanh(np.clip(values, -0.999, 0.999))
    middle = float(np.median(scale))
    spread = 1.4826 * float(np.median(np.abs(scale - middle)))
    likeness = float(np.clip(np.tanh(middle + _SPREADS * spread), *NEAR_LIMITS))
    net = float(np.quantile(by_features.similarity, _NET_FEATURES))
    hash_net = float(np.quantile(by_hash.similarity, _NET_HASH))
    differing = int((1 - hash_net) / 2 * signs.shape[1] + 0.5)
    return Thresholds(net, differing, likeness), (net, hash_net)


def bundles(subject: Subject, pairs: Pairs) -> Rows:
    """Return a number for each row, (n,), equal for pictures that a group or a pair holds together, over any chain."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, group = len(subject.ids), codes(subject.groups)
    centre = np.zeros(int(group.max()) + 1, np.int64)
    centre[group[::-1]] = np.arange(n)[::-1]
    a, b = np.concatenate([np.arange(n), pairs.first]), np.concatenate([centre[group], pairs.second])
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
