"""Linear heads: X @ coef + intercept, by three ways of finding coef."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.cache.reader import subset
from models.folds import grouped_folds
from models.heads.head import FEWEST_FOLDS, Array, log_loss, silent, standardisation
from models.logistic_path import out_of_fold, predicted, strengths, sweep

_BLOCK = 4096  # rows read at once from features on the disk
_ENOUGH = 1e-4  # gap of models that only take part in a choice


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

    steps = 13  # strengths tried, two a decade

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve all strengths on all grouped folds at once, choose, and solve the chosen one on all rows.

        X is (n, d), or rows on the disk such as `features.cache.reader.FeatureRows`.
        """
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        masks = np.stack([folds != f for f in range(folds.max() + 1)])
        held = out_of_fold(X, sweep(X, y, strengths=strengths(self.steps), folds=masks), masks)
        losses = np.array([log_loss(y, proba) for proba in held])
        self._settle(X, y, losses)
        return self

    def _settle(self, X: Any, y: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Solve on all rows at the strength of least held-out loss (S,)."""
        best = float(strengths(self.steps)[int(losses.argmin())])
        final = sweep(X, y, strengths=[best], folds=np.ones((1, len(y)), dtype=bool))
        self.coef_, self.intercept_ = final.coef[0, 0].astype(np.float64), final.intercept[0, 0].astype(np.float64)
        self.classes_ = np.arange(int(y.max()) + 1)
        self.chosen_ = {"C": best, "held_out_log_loss": float(losses.min())}

    def fit_folds(
        self, X: Any, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return nested out-of-fold probabilities (n, K), with half the work of a fit per fold.

        The inner folds of each fold are the other folds: a model that has seen neither fold i nor fold j serves in the
        choice for both. None where the folds are fewer than four, or leave too little of a class without two of them.
        """
        names = np.unique(folds)
        pairs = list(combinations(range(len(names)), 2))
        both = np.stack([(folds != names[i]) & (folds != names[j]) for i, j in pairs])
        k = int(y.max()) + 1
        if len(names) < FEWEST_FOLDS or any(len(np.unique(y[mask])) < k for mask in both):
            return None
        singles = folds != names[:, None]
        inner = sweep(X, y, strengths=strengths(self.steps), folds=both, tol=_ENOUGH)
        progress(1, 3)
        losses = np.zeros((len(names), self.steps))
        for at, (i, j) in enumerate(pairs):
            for judge, judged in ((i, j), (j, i)):
                rows = np.flatnonzero(folds == names[judged])
                proba = predicted(subset(X, rows), inner, at)
                losses[judge] += [log_loss(y[rows], p) * len(rows) for p in proba]
        outer = sweep(X, y, strengths=strengths(self.steps), folds=singles)
        progress(2, 3)
        held, total = np.empty((len(y), k)), np.zeros(self.steps)
        for i, name in enumerate(names):
            rows = np.flatnonzero(folds == name)
            proba = predicted(subset(X, rows), outer, i)
            held[rows] = proba[int(losses[i].argmin())]
            total += [log_loss(y[rows], p) * len(rows) for p in proba]
        self._settle(X, y, total / len(y))
        progress(3, 3)
        return held

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
