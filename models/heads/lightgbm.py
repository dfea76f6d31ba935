"""Gradient-boosted decision trees (LightGBM) with early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import held_out
from models.heads.head import Array, Head

# Deep features are many, correlated and each of them weak: small trees, few features per tree, coarse bins.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.2, "lambda_l2": 5.0},
    {"num_leaves": 7, "min_data_in_leaf": 20, "feature_fraction": 0.1, "lambda_l2": 5.0},
    {"num_leaves": 4, "min_data_in_leaf": 10, "feature_fraction": 0.1, "lambda_l2": 1.0},
)
_BINS = {"max_bin": 15, "bin_construct_sample_cnt": 100_000, "feature_pre_filter": False, "verbosity": -1}
_BLOCK = 4096  # rows read at once from features on the disk


class Boosted(Head):
    """LightGBM: the settings and the number of trees with the least log loss on a grouped fifth of the rows.

    The features are binned once. Settings are compared on `enough` rows at most. Where there are more, the chosen
    settings stop early on all of them; where there are not, as many trees are grown again with the held-out rows.
    """

    most_trees, patience, enough = 1000, 30, 10_000
    _booster: Any

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Grow trees until the held-out log loss has not fallen for `patience` trees, once for each of SETTINGS.

        X is (n, d), or rows on the disk (`features.cache.reader.FeatureRows`), which are read once and never copied.
        """
        import lightgbm

        k, held = int(y.max()) + 1, held_out(y, groups, seed=self.seed)
        table = _binned(X, y, self.seed)
        some = np.sort(np.random.default_rng(self.seed).permutation(len(y))[: self.enough])
        tried = [self._grown(table, held, some, k, settings) for settings in SETTINGS]
        best = int(np.argmin([loss for _, loss in tried]))
        booster, loss = tried[best]
        if len(some) < len(y):
            booster, loss = self._grown(table, held, np.arange(len(y)), k, SETTINGS[best])
        trees = int(booster.best_iteration)
        if len(some) == len(y):
            booster = lightgbm.train({**self._fixed(k), **SETTINGS[best]}, table, trees)
        self._booster, self.classes_ = booster, np.arange(k)
        self.chosen_ = {**SETTINGS[best], "trees": trees, "held_out_log_loss": loss}
        return self

    def _grown(
        self, table: Any, held: NDArray[np.bool_], rows: NDArray[np.intp], k: int, settings: Mapping[str, Any]
    ) -> tuple[Any, float]:
        """Return the trees grown on some rows, but for those held out, and the log loss of these."""
        import lightgbm

        train, valid = (table.subset(rows[held[rows] == side]) for side in (False, True))
        stop = lightgbm.early_stopping(self.patience, verbose=False)
        booster = lightgbm.train({**self._fixed(k), **settings}, train, self.most_trees, [valid], callbacks=[stop])
        return booster, float(next(iter(booster.best_score["valid_0"].values())))

    def _fixed(self, k: int) -> dict[str, Any]:
        objective = {"objective": "binary"} if k == 2 else {"objective": "multiclass", "num_class": k}
        fixed = {"learning_rate": 0.1, "seed": self.seed, "deterministic": True, "force_col_wise": True}
        return objective | fixed | _BINS

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        trees = self.chosen_["trees"]
        parts = [X] if isinstance(X, np.ndarray) else (X[i : i + _BLOCK] for i in range(0, len(X), _BLOCK))
        raw = np.concatenate([np.asarray(self._booster.predict(part, num_iteration=trees)) for part in parts])
        return np.stack([1 - raw, raw], axis=1) if raw.ndim == 1 else raw

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return LightGBM's own text, cut at the best tree, which its own loader reads."""
        return {"text": self._booster.model_to_string(num_iteration=self.chosen_["trees"])}, {}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over LightGBM's text."""
        import lightgbm

        self._booster = lightgbm.Booster(model_str=values["text"])
        return self


def _binned(X: Any, y: NDArray[np.int64], seed: int) -> Any:
    """Return LightGBM's own table of all rows, a byte or less per feature."""
    import lightgbm

    class OnDisk(lightgbm.Sequence):
        """Rows for LightGBM, which asks for one at a time, ascending, to find the bins, and then for block by block."""

        batch_size, start, block = _BLOCK, 0, X[:0]

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, at: int | slice | list[int]) -> NDArray[Any]:
            if isinstance(at, slice | list):
                return np.asarray(X[at])
            if not 0 <= at - self.start < len(self.block):
                self.start = at // _BLOCK * _BLOCK
                self.block = X[self.start : self.start + _BLOCK]
            return np.asarray(self.block[at - self.start], np.float64)  # LightGBM insists

    data = X if isinstance(X, np.ndarray) else OnDisk()
    return lightgbm.Dataset(data, y, params=_BINS | {"data_random_seed": seed}).construct()
