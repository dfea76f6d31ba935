"""Folds: stratified by class, never with one group on both sides."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from features.errors import BadDataset

_MANY = 20_000  # groups, for which scikit-learn's greedy choice takes 8 seconds, and minutes for a million


def grouped_folds(y: NDArray[np.int64], groups: NDArray[np.str_] | None, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold 0..k-1 of each row, (n,).

    scikit-learn's StratifiedGroupKFold, shuffled with `seed`; 20,000 groups or more are shuffled and dealt out. `k` is
    lowered to what the smallest class allows, counted in groups; BadDataset where a class has fewer than two groups,
    for then nothing can be held out.
    """
    names = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return _grouped(y.astype(np.int64).tobytes(), names.astype(np.int64).tobytes(), k, seed).copy()


@lru_cache(maxsize=64)
def _grouped(labels: bytes, groups: bytes, k: int, seed: int) -> NDArray[np.int64]:
    """Return the folds for labels and groups in int64; heads on other views ask for the same ones again and again."""
    from sklearn.model_selection import StratifiedGroupKFold

    y, names = (np.frombuffer(column, dtype=np.int64) for column in (labels, groups))
    fewest = min(len(np.unique(names[y == c])) for c in np.unique(y))
    if fewest < 2:
        raise BadDataset("a class has images of one group (patient) only in the training split; add more groups")
    if names.max() >= _MANY:
        return _dealt(y, names, min(k, fewest), seed)
    folds = np.zeros(len(y), dtype=np.int64)
    splitter = StratifiedGroupKFold(min(k, fewest), shuffle=True, random_state=seed)
    for fold, (_, held) in enumerate(splitter.split(np.zeros(len(y)), y, names)):
        folds[held] = fold
    return folds


def _dealt(y: NDArray[np.int64], names: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Return folds (n,) with shuffled groups, alike in rarest class and size, dealt out one to each fold in turn."""
    rarity = np.argsort(np.argsort(-np.bincount(y), kind="stable"))[y]
    rarest, size = np.zeros(names.max() + 1, np.int64), np.bincount(names)
    np.maximum.at(rarest, names, rarity)
    order = np.lexsort((np.random.default_rng(seed).random(len(size)), -size, -rarest))
    fold = np.empty(len(size), np.int64)
    fold[order] = np.arange(len(size)) % k
    return fold[names]


def held_out(y: NDArray[np.int64], groups: NDArray[np.str_] | None, *, seed: int = 0, k: int = 5) -> NDArray[np.bool_]:
    """Return which rows are held out for early stopping, (n,): one of `k` grouped folds."""
    return np.asarray(grouped_folds(y, groups, k, seed=seed) == 0)
