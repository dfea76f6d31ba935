"""Linear heads: X @ coef + intercept, by three ways of finding coef."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import Array, log_loss, standardisation
from models.sweep import out_of_fold, strengths, sweep

__all__ = ["Discriminant", "Logistic", "Sgd", "probabilities"]

_BLOCK = 4096  # rows read at once from features on the disk


def probabilities(decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return class probabilities (n, K) for decisions (n, K), or (n,) and (n, 1) in the binary case."""
    if decision.ndim == 1 or decision.shape[1] == 1:
        decision = np.stack([np.zeros(len(decision)), decision.reshape(-1)], axis=1)
    shifted = np.exp(decision - decision.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


class Linear:
    """What linear heads share: coefficients in the units of X."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen_: dict[str, Any] = {}
        self.classes_: NDArray[np.int64]
        self.coef_: NDArray[np.float64]  # (K or 1, d)
        self.intercept_: NDArray[np.float64]  # (K or 1,)

    def decision_function(self, X: Array) -> NDArray[np.float64]:
        """Return X @ coef' + intercept, (n, K) or (n, 1) in the binary case."""
        return np.asarray(X @ self.coef_.T.astype(np.float32), dtype=np.float64) + self.intercept_

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        return probabilities(self.decision_function(X))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the coefficients."""
        return {}, {"coef": self.coef_, "intercept": self.intercept_}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over coefficients."""
        self.coef_, self.intercept_ = arrays["coef"], arrays["intercept"]
        return self


class Logistic(Linear):
    """L2-regularised logistic regression on standardised features; the strength with the least held-out log loss."""

    steps = 20  # strengths tried

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve all strengths on all grouped folds at once, choose, and solve the chosen one on all rows.

        X is (n, d), or rows on the disk such as `features.rows.FeatureRows`.
        """
        grid = strengths(self.steps)
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        masks = np.stack([folds != f for f in range(folds.max() + 1)])
        held = out_of_fold(X, sweep(X, y, strengths=grid, folds=masks), masks)
        losses = np.array([log_loss(y, proba) for proba in held])
        best = float(grid[int(losses.argmin())])
        final = sweep(X, y, strengths=[best], folds=np.ones((1, len(y)), dtype=bool))
        self.coef_, self.intercept_ = final.coef[0, 0].astype(np.float64), final.intercept[0, 0].astype(np.float64)
        self.classes_ = np.arange(held.shape[2])
        self.chosen_ = {"C": best, "held_out_log_loss": float(losses.min())}
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return X @ coef' + intercept, (n, K) or (n, 1) in the binary case; rows on the disk are read in blocks."""
        if isinstance(X, np.ndarray):
            return super().decision_function(X)
        score = super().decision_function
        parts = [score(X[i : i + _BLOCK]) for i in range(0, len(X), _BLOCK)]
        return np.concatenate(parts or [np.empty((0, len(self.coef_)))])


class Discriminant(Linear):
    """Fisher's linear discriminant with a Ledoit-Wolf covariance (scikit-learn's `lsqr` solver)."""

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve in closed form; there is nothing to choose, so groups play no part."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        mean, std = standardisation(X)
        solved = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit((X - mean) / std, y)
        self.coef_ = np.asarray(solved.coef_, dtype=np.float64) / std
        self.intercept_ = np.asarray(solved.intercept_, dtype=np.float64) - self.coef_ @ mean
        self.classes_ = np.asarray(solved.classes_)
        return self


class Sgd(Linear):
    """A linear layer under cross-entropy by SGD: momentum 0.9, rate 0.01 times 0.1 every 10 epochs, 100 epochs."""

    epochs, batch, rate, momentum = 100, 32, 0.01, 0.9

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Run the recipe on standardised features; nothing is chosen, so groups play no part."""
        mean, std = standardisation(X)
        Z, k = ((X - mean) / std).astype(np.float32), int(y.max()) + 1
        targets = np.eye(k, dtype=np.float32)[y]
        weights, bias = np.zeros((Z.shape[1], k), np.float32), np.zeros(k, np.float32)
        step_w, step_b = np.zeros_like(weights), np.zeros_like(bias)
        rng = np.random.default_rng(self.seed)
        for epoch in range(self.epochs):
            rate = np.float32(self.rate * 0.1 ** (epoch // 10))
            order = rng.permutation(len(y))
            for start in range(0, len(y), self.batch):
                at = order[start : start + self.batch]
                logits = Z[at] @ weights + bias
                residual = np.exp(logits - logits.max(axis=1, keepdims=True))
                residual = (residual / residual.sum(axis=1, keepdims=True) - targets[at]) / len(at)
                step_w = self.momentum * step_w + Z[at].T @ residual
                step_b = self.momentum * step_b + residual.sum(axis=0)
                weights -= rate * step_w
                bias -= rate * step_b
        self.coef_ = weights.T.astype(np.float64) / std
        self.intercept_ = bias.astype(np.float64) - self.coef_ @ mean
        self.classes_ = np.arange(k)
        return self
