"""Exact duplicates (same bytes) and near-duplicates (same image in other bytes, by registration)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.images.phash import hash_bits
from models.audit.neighbours import best_matches
from models.audit.subject import Subject, codes

_ITERATIONS, _EPSILON = 30, 1e-6
_FINE, _COARSE = 0.7, 2.0  # pixels: blur that takes out coding noise, blur that takes out what all such images share
_EDGE = 9  # pixels, twice the reach of the coarse blur, and one: beyond the edge of b nothing is known
_AREA, _COMMON = 0.35, 0.5  # most change of area, least share of the thumbnail that both show
_TASK = 64  # pairs per task


def likeness(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the likeness of two thumbnails (S, S), -1 to 1, after affine registration of b to a.

    The map maximises the enhanced correlation coefficient (Evangelidis & Psarakis 2008, IEEE TPAMI 30:1858), which
    brightness and contrast do not change: it undoes crops, resizes and small turns. Then both pass a difference of
    Gaussians (Marr & Hildreth 1980), which leaves edges and structures and takes out the anatomy's rough shape, and are
    correlated where both show something. 0 where no map is found.
    """
    import cv2

    first, second = a.astype(np.float32), b.astype(np.float32)
    if first.std() < 1 or second.std() < 1:
        return 0.0
    everywhere = np.ones(a.shape, np.uint8)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, _EPSILON)
    try:
        _, found = cv2.findTransformECC(
            first, second, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, criteria, everywhere, 3
        )
    except cv2.error:  # it did not converge: the two have nothing in common
        return 0.0
    warp = np.asarray(found, np.float32)
    if not abs(np.linalg.det(warp[:, :2]) - 1) < _AREA:
        return 0.0
    return _correlation(first, second, warp)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32], warp: NDArray[np.float32]) -> float:
    """Return the correlation of the structures in a with those in b under the map, where both are there."""
    import cv2

    size, flags = a.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = np.asarray(cv2.warpAffine(b, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)
    both = cv2.warpAffine(np.ones_like(b), warp, size, flags=flags) > 0.99
    both = cv2.erode(both.astype(np.uint8), np.ones((_EDGE, _EDGE), np.uint8)) > 0
    if both.mean() < _COMMON:
        return 0.0
    x, y = _structures(a)[both].astype(np.float64), _structures(laid)[both].astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _structures(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference of Gaussians of an image."""
    import cv2

    fine, coarse = (cv2.GaussianBlur(image, (0, 0), width) for width in (_FINE, _COARSE))
    return np.asarray(fine - coarse, np.float32)


def likenesses(
    thumbnails: NDArray[np.uint8],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Return the likeness of each pair (m,) of rows of thumbnails (n, S, S), (m,), by threads."""
    import cv2

    starts = range(0, len(first), _TASK)

    def task(start: int) -> list[float]:
        pairs = zip(first[start : start + _TASK], second[start : start + _TASK], strict=True)
        return [likeness(thumbnails[i], thumbnails[j]) for i, j in pairs]

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    found: list[float] = []
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for values in pool.map(task, starts):
                found += values
                progress(len(found), len(first))
    finally:
        cv2.setNumThreads(threads)
    return np.array(found, np.float64)


Rows = NDArray[np.int64]
Step = Callable[[str], Callable[[int, int], None]]  # what is being done -> a function (done, total)

NEAR_LIMITS = (0.85, 0.93)  # of the threshold: what is above the second is the same image in any set
_SPREADS = 6.0  # robust standard deviations above pairs that cannot be duplicates
_SAMPLE = 1000  # images that those pairs are sought for
_NET_FEATURES, _NET_HASH = 0.5, 0.95  # quantiles of those pairs above which a pair is looked at closely


class Pairs(NamedTuple):
    """Duplicate pairs of rows; `first` is the training image where the other is in a later split."""

    first: Rows  # (m,)
    second: Rows  # (m,)
    likeness: NDArray[np.float64]  # (m,) 1 for the same bytes

    def take(self, at: NDArray[np.bool_] | Rows) -> Pairs:
        """Return the chosen pairs."""
        return Pairs(self.first[at], self.second[at], self.likeness[at])


class Thresholds(NamedTuple):
    """Thresholds of the search for near-duplicates, all measured on pairs of different classes."""

    cosine: float  # of standardised features, from which a pair is looked at closely
    hash_bits: int  # of 63 that may differ for the same
    likeness: float  # after alignment, from which a pair is reported


def exact_pairs(subject: Subject) -> Pairs:
    """Return the exact duplicates, each paired with the image of its bytes in the earliest split, else the first."""
    rank = np.lexsort((np.arange(len(subject.ids)), subject.order, subject.content))
    content = subject.content[rank]
    starts = np.flatnonzero(np.r_[True, content[1:] != content[:-1]])
    centre = rank[np.repeat(starts, np.diff(np.r_[starts, len(rank)]))]
    others = rank != centre
    return Pairs(centre[others], rank[others], np.ones(int(others.sum())))


def near_pairs(subject: Subject, *, seed: int = 0, step: Step) -> tuple[Pairs, Thresholds]:
    """Return the near-duplicates, most alike first, and the thresholds that they were found by.

    Candidates are the nearest images by features and by perceptual hash, of every image in every split; each is
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
    """Return the thresholds, from the likeness of images of different classes, nearly none of which are duplicates.

    The threshold of the likeness is the median plus six robust standard deviations (1.4826 MAD) on Fisher's scale,
    artanh, of the nearest image of another class, within NEAR_LIMITS.
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


def linked_groups(subject: Subject, pairs: Pairs) -> Rows:
    """Return the linked group of each row, (n,): connected components of groups and duplicate pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, group = len(subject.ids), codes(subject.groups)
    centre = np.zeros(int(group.max()) + 1, np.int64)
    centre[group[::-1]] = np.arange(n)[::-1]
    a, b = np.concatenate([np.arange(n), pairs.first]), np.concatenate([centre[group], pairs.second])
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
