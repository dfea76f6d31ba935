"""Folds of more groups than scikit-learn deals with quickly."""

from __future__ import annotations

import numpy as np
import pytest

from models import folds as module
from models.folds import grouped_folds


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
