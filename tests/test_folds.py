"""Folds are scikit-learn's, and those of very many groups nearly as even."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from models import folds as module
from models.folds import grouped_folds


@pytest.mark.parametrize("seed", range(12))
def test_folds_are_scikit_learns(seed: int) -> None:
    """Of single images and of groups of unequal sizes, of two classes and more, balanced or not."""
    rng = np.random.default_rng(seed)
    n, classes, k = int(rng.integers(60, 400)), int(rng.integers(2, 6)), int(rng.integers(2, 7))
    groups = np.arange(n) if seed % 3 == 0 else rng.integers(0, n // 3, n)
    y = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 3.0)))
    y[: 20 * classes] = np.arange(20 * classes) % classes
    y = np.minimum(y, y[groups]) if seed % 3 == 1 else y
    names, expected = groups.astype(np.str_), np.empty(n, np.int64)
    for fold, (_, held) in enumerate(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(y, y, names)):
        expected[held] = fold
    np.testing.assert_array_equal(grouped_folds(y, names, k, seed=seed), expected)


def test_many_groups_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups stay whole, every fold has nearly the same share of each class, and the seed decides."""
    monkeypatch.setattr(module, "_MANY", 100)
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 400, 2000)
    y = np.where(rng.random(400) < 0.1, 2, rng.integers(0, 2, 400))[groups]
    found = grouped_folds(y, groups.astype(np.str_), 5, seed=1)
    assert all(len(np.unique(found[groups == g])) == 1 for g in np.unique(groups))
    for label in range(3):
        shares = np.bincount(found[y == label], minlength=5) / (y == label).sum()
        assert np.all(np.abs(shares - 0.2) < 0.06)
    assert np.array_equal(found, grouped_folds(y, groups.astype(np.str_), 5, seed=1))
    assert not np.array_equal(found, grouped_folds(y, groups.astype(np.str_), 5, seed=2))
