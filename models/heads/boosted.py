"""Gradient-boosted trees by LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import held_out
from models.heads.head import Array

__all__ = ["Boosted"]


class Boosted:
    """LightGBM with early stopping on a grouped fifth of the rows.

    Small trees, few features per tree and strong L2: deep features are many, correlated and each of them weak.
    """

    most_trees, patience = 1000, 50

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen_: dict[str, Any] = {}
        self.classes_: NDArray[np.int64]
        self._booster: Any = None

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Grow trees until the held-out log loss has not fallen for `patience` trees."""
        import lightgbm

        k = int(y.max()) + 1
        held = held_out(y, groups, seed=self.seed)
        train = lightgbm.Dataset(X[~held], y[~held], free_raw_data=True, params={"verbosity": -1})
        valid = lightgbm.Dataset(X[held], y[held], reference=train, params={"verbosity": -1})
        stop = lightgbm.early_stopping(self.patience, verbose=False)
        self._booster = lightgbm.train(self._settings(k), train, self.most_trees, [valid], callbacks=[stop])
        self.classes_ = np.arange(k)
        self.chosen_ = {"trees": int(self._booster.best_iteration)}
        return self

    def _settings(self, k: int) -> dict[str, Any]:
        objective = {"objective": "binary"} if k == 2 else {"objective": "multiclass", "num_class": k}
        return objective | {
            "learning_rate": 0.05,
            "num_leaves": 15,
            "min_data_in_leaf": 20,
            "feature_fraction": 0.2,
            "lambda_l2": 5.0,
            "max_bin": 63,
            "seed": self.seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        raw = np.asarray(self._booster.predict(X, num_iteration=self.chosen_["trees"]))
        return np.stack([1 - raw, raw], axis=1) if raw.ndim == 1 else raw

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return LightGBM's own text, cut at the best tree, which its own loader reads."""
        return {"text": self._booster.model_to_string(num_iteration=self.chosen_["trees"])}, {}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over LightGBM's text."""
        import lightgbm

        self._booster = lightgbm.Booster(model_str=values["text"])
        return self
