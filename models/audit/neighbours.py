"""Nearest rows, block by block, and outliers: images far from all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CELLS = 2**23  # of one block of similarities, 32 MB
Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]


class Matches(NamedTuple):
    """The nearest neighbour of each of m rows; similarity is -inf where none was allowed."""

    row: Rows  # (m,)
    nearest: Rows  # (m,)
    similarity: NDArray[np.float32]  # (m,)


def best_matches(
    units: NDArray[np.float32],
    keys: Sequence[Rows],
    *,
    rows: Rows | None = None,
    parts: Sequence[Rows] | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Matches]:
    """Return, for each part of the columns, the most similar row of each of `rows` (all by default).

    units (n, d) have length 1 each. Rows that share a number in any of `keys`, (n,) each, are no match for each other.
    """
    own = np.arange(len(units)) if rows is None else rows
    columns = [np.arange(len(units))] if parts is None else list(parts)
    found = [Matches(own, np.zeros(len(own), np.int64), np.full(len(own), -np.inf, np.float32)) for _ in columns]
    others = [(part, units[part]) for part in columns]
    for at in _blocks(len(own), max(len(part) for part in columns)):
        block = own[at]
        for matches, (part, candidates) in zip(found, others, strict=True):
            similarity = units[block] @ candidates.T
            for key in keys:
                similarity[key[block][:, None] == key[part]] = -np.inf
            best = similarity.argmax(1)
            matches.nearest[at], matches.similarity[at] = part[best], similarity[np.arange(len(block)), best]
        progress(at.stop, len(own))
    return found


def mean_distances(
    directions: NDArray[np.float32],
    lengths: NDArray[np.float32],
    key: Rows,
    k: int,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[NDArray[np.float64], Rows]:
    """Return the mean Euclidean distance (n,) of each row to its k nearest, and those, (n, k), nearest first.

    Rows are directions (n, d) of length 1 times lengths (n,); those with an equal number in `key` do not count, and
    where fewer than k are left the places are -1.
    """
    n, squares = len(directions), np.square(lengths)
    k = min(k, n - 1)
    distance, nearest = np.zeros(n), np.zeros((n, k), np.int64)
    for at in _blocks(n, n):
        squared = (-2 * lengths[at, None]) * (directions[at] @ directions.T)
        squared *= lengths
        squared += squares
        squared += squares[at, None]
        squared[key[at, None] == key] = np.inf
        some = np.argpartition(squared, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(squared, some, 1)
        order = np.argsort(near, axis=1, kind="stable")
        near = np.sqrt(np.maximum(np.take_along_axis(near, order, 1), 0), dtype=np.float64)
        there = np.isfinite(near)
        nearest[at] = np.where(there, np.take_along_axis(some, order, 1), -1)
        distance[at] = np.where(there, near, 0).sum(1) / np.maximum(there.sum(1), 1)
        progress(at.stop, n)
    return distance, nearest


def _blocks(n: int, columns: int) -> Iterator[slice]:
    step = max(1, _CELLS // max(columns, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


FAR = 4.0  # robust standard deviations; of a normal distribution three in 100,000 are beyond


class Odd(NamedTuple):
    """Outlying rows, strongest first, with the value that they were found by."""

    row: NDArray[np.int64]  # (m,)
    value: NDArray[np.float64]  # (m,)


def far_out(y: NDArray[np.int64], distance: NDArray[np.float64]) -> Odd:
    """Return the outliers: rows whose mean neighbour distance (n,) is more than FAR robust z-scores in its class.

    On the logarithm of the distance: z = (x - median) / (1.4826 MAD), Iglewicz & Hoaglin 1993; the distance to the
    nearest ones by Ramaswamy, Rastogi & Shim 2000 (SIGMOD 29:427).
    """
    x = np.log(np.maximum(distance, 1e-12))
    z = np.zeros(len(x))
    for label in np.unique(y):
        own = y == label
        middle = np.median(x[own])
        spread = 1.4826 * np.median(np.abs(x[own] - middle))
        z[own] = (x[own] - middle) / spread if spread > 0 else 0.0
    row = np.flatnonzero(z > FAR)
    row = row[np.argsort(-z[row], kind="stable")]
    return Odd(row, z[row])
