"""Linear heads: logistic regression, linear discriminant analysis and softmax regression by SGD."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from features.cache.reader import subset
from features.progress import say
from models.folds import grouped_folds
from models.heads.head import FEWEST_FOLDS, Array, Head, log_loss, silent, standardisation
from models.logistic_path import Sweep, one_thread, out_of_fold, predicted, strengths, sweep

_BLOCK = 4096  # rows read at once from features on the disk
_ENOUGH = 1e-4  # gap of models that only take part in a choice


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax (n, K) of logits (n, K), or of log odds (n,) or (n, 1) in the binary case."""
    if logits.ndim == 1 or logits.shape[1] == 1:
        logits = np.stack([np.zeros(len(logits)), logits.reshape(-1)], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


class Linear(Head):
    """The base class of linear heads: coefficients in the units of X."""

    saved: ClassVar = {"coef": "coef_", "intercept": "intercept_"}
    coef_: NDArray[np.float64]  # (K or 1, d)
    intercept_: NDArray[np.float64]  # (K or 1,)

    def decision_function(self, X: Array) -> NDArray[np.float64]:
        """Return X @ coef' + intercept, (n, K) or (n, 1) in the binary case."""
        return np.asarray(X @ self.coef_.T.astype(np.float32), dtype=np.float64) + self.intercept_

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        return probabilities(self.decision_function(X))


class Logistic(Linear):
    """L2-regularised logistic regression on standardised features; the strength with the least held-out log loss."""

    steps = 13  # strengths tried, two a decade

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve all strengths on all grouped folds at once, choose, and solve the chosen one on all rows.

        X is (n, d), or rows on the disk such as `features.cache.reader.FeatureRows`.
        """
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        masks = np.stack([folds != f for f in range(folds.max() + 1)])
        held = out_of_fold(X, self._solved(X, y, strengths=strengths(self.steps), folds=masks), masks)
        losses = np.array([log_loss(y, proba) for proba in held])
        self._settle(X, y, losses)
        return self

    def _settle(self, X: Any, y: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Solve on all rows at the strength of least held-out loss (S,)."""
        best = float(strengths(self.steps)[int(losses.argmin())])
        final = self._solved(X, y, strengths=[best], folds=np.ones((1, len(y)), dtype=bool))
        self.coef_, self.intercept_ = final.coef[0, 0].astype(np.float64), final.intercept[0, 0].astype(np.float64)
        self.classes_ = np.arange(int(y.max()) + 1)
        self.chosen_ |= {"C": best, "held_out_log_loss": float(losses.min())}

    def _solved(self, X: Any, y: NDArray[np.int64], **settings: Any) -> Sweep:
        """Return the solutions; those whose duality gap is above the tolerance are counted, and said."""
        found = self.on_device(int(np.prod(X.shape)), lambda device: sweep(X, y, **settings, device=device))
        if missed := int((~found.converged).sum()):
            self.chosen_["not_certified"] = self.chosen_.get("not_certified", 0) + missed
            say(
                f"logistic: {missed} of {found.gap.size} solutions are not certified, duality gap {found.gap.max():.0e}"
            )
        return found

    def fit_folds(
        self, X: Any, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return probabilities without each fold (F, n, K), with half the work of a fit per fold.

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
        inner = self._solved(X, y, strengths=strengths(self.steps), folds=both, tol=_ENOUGH)
        progress(1, 3)
        losses = np.zeros((len(names), self.steps))
        for at, (i, j) in enumerate(pairs):
            for judge, judged in ((i, j), (j, i)):
                rows = np.flatnonzero(folds == names[judged])
                proba = predicted(subset(X, rows), inner, at)
                losses[judge] += [log_loss(y[rows], p) * len(rows) for p in proba]
        outer = self._solved(X, y, strengths=strengths(self.steps), folds=singles)
        progress(2, 3)
        held, total, best = np.empty((len(names), len(y), k)), np.zeros(self.steps), losses.argmin(axis=1)
        for i, name in enumerate(names):
            rows = np.flatnonzero(folds == name)
            proba = predicted(subset(X, rows), outer, i)
            held[i, rows] = proba[best[i]]
            total += [log_loss(y[rows], p) * len(rows) for p in proba]
        for at, (i, j) in enumerate(pairs):
            for judge, judged in ((i, j), (j, i)):
                rows = np.flatnonzero(folds == names[judged])
                held[judge, rows] = predicted(subset(X, rows), at_strength(inner, best[judge]), at)[0]
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


def at_strength(found: Sweep, strength: int) -> Sweep:
    """Return the solutions of one strength, by its place."""
    at = slice(strength, strength + 1)
    return replace(found, coef=found.coef[:, at], intercept=found.intercept[:, at])


class Discriminant(Linear):
    """Fisher's linear discriminant with a Ledoit-Wolf covariance (scikit-learn's `lsqr` solver)."""

    @one_thread()
    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve in closed form; there is nothing to choose, so groups play no part."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        mean, std = standardisation(X)
        with warnings.catch_warnings():  # a class of one image has no covariance, which shrinks to none
            warnings.filterwarnings("ignore", "Only one sample available")
            solved = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit((X - mean) / std, y)
        self.coef_ = np.asarray(solved.coef_, dtype=np.float64) / std
        self.intercept_ = np.asarray(solved.intercept_, dtype=np.float64) - self.coef_ @ mean
        self.classes_ = np.asarray(solved.classes_)
        return self


class Sgd(Linear):
    """Softmax regression by minibatch SGD: momentum 0.9, rate 0.01, StepLR(10, 0.1), 100 epochs, batches of 32."""

    epochs, batch, rate, momentum = 100, 32, 0.01, 0.9

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Run the recipe on standardised features; nothing is chosen, so groups play no part."""
        import torch
        from threadpoolctl import threadpool_limits

        mean, std = standardisation(X)
        Z, k = torch.from_numpy(((X - mean) / std).astype(np.float32)), int(y.max()) + 1
        targets = torch.eye(k)[torch.from_numpy(y)]
        weights, bias = torch.zeros(k, Z.shape[1]), torch.zeros(k)
        optimiser = torch.optim.SGD([weights, bias], lr=self.rate, momentum=self.momentum)
        schedule, rng = torch.optim.lr_scheduler.StepLR(optimiser, 10, 0.1), np.random.default_rng(self.seed)
        with threadpool_limits(1):  # in products this small threads only wait for each other
            for _ in range(self.epochs):
                order = torch.from_numpy(rng.permutation(len(y)))
                for at in torch.split(order, self.batch):
                    residual = (torch.softmax(torch.addmm(bias, Z[at], weights.T), 1) - targets[at]) / len(at)
                    weights.grad, bias.grad = residual.T @ Z[at], residual.sum(0)
                    optimiser.step()
                schedule.step()
        self.coef_ = weights.numpy() / std.astype(np.float64)
        self.intercept_ = bias.numpy() - self.coef_ @ mean
        self.classes_ = np.arange(k)
        return self
