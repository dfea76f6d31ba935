"""Folds: stratified by class, never with one group on both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.errors import BadDataset

__all__ = ["grouped_folds", "held_out"]


def grouped_folds(y: NDArray[np.int64], groups: NDArray[np.str_] | None, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold 0..k-1 of each row, (n,).

    scikit-learn's StratifiedGroupKFold, shuffled with `seed`. `k` is lowered to what the smallest class allows, counted
    in groups; BadDataset where a class has fewer than two groups, for then nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    fewest = min(len(np.unique(names[y == c])) for c in np.unique(y))
    if fewest < 2:
        raise BadDataset("a class has pictures of one group (patient) only in the training split; add more groups")
    folds = np.zeros(len(y), dtype=np.int64)
    splitter = StratifiedGroupKFold(min(k, fewest), shuffle=True, random_state=seed)
    for fold, (_, held) in enumerate(splitter.split(np.zeros(len(y)), y, names)):
        folds[held] = fold
    return folds


def held_out(y: NDArray[np.int64], groups: NDArray[np.str_] | None, *, seed: int = 0, k: int = 5) -> NDArray[np.bool_]:
    """Return which rows are held out for early stopping, (n,): one of `k` grouped folds."""
    return np.asarray(grouped_folds(y, groups, k, seed=seed) == 0)
