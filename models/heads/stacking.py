"""Stacked generalisation: a weighted vote of other models, learned from their out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Array, Head
from models.heads.linear import probabilities

_LEAST = 1e-6  # no model's certainty counts for more
Floats = NDArray[np.float64]


class Stack(Head):
    """softmax(sum_m w_m log p_m + b), w >= 0: stacked generalisation (Wolpert 1992; Breiman 1996 for w >= 0).

    X is (n, M, K): the probabilities of M models, out of fold for the rows to learn from. Log loss with a pull towards
    the plain mean of log probabilities (`pull` times the squared distance of the weights), for good models agree so
    much that their weights are hardly determined.
    """

    pull = 0.01

    saved: ClassVar = {"weights": "_weights", "intercepts": "_intercepts"}
    _weights: Floats  # (M,)
    _intercepts: Floats  # (K,), the first is 0

    @property
    def models(self) -> int:
        """Return M, of how many models it is a vote."""
        return len(self._weights)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Find the weights by a bounded quasi-Newton method; nothing is chosen, so groups play no part."""
        from scipy.optimize import minimize

        logs = _logs(X)
        n, models, k = logs.shape
        targets = np.eye(k)[y]

        def loss(parameters: Floats) -> tuple[float, Floats]:
            weights, intercepts = parameters[:models], np.append(0.0, parameters[models:])
            proba = probabilities(np.tensordot(logs, weights, (1, 0)) + intercepts)
            gap = (proba - targets) / n
            away = weights - 1 / models
            value = -np.log(np.maximum(proba[np.arange(n), y], 1e-300)).mean() + self.pull * away @ away
            slope = np.einsum("nmk,nk->m", logs, gap) + 2 * self.pull * away
            return float(value), np.append(slope, gap[:, 1:].sum(axis=0))

        start = np.append(np.full(models, 1 / models), np.zeros(k - 1))
        bounds = [(0, None)] * models + [(None, None)] * (k - 1)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
        self._weights, self._intercepts = found[:models], np.append(0.0, found[models:])
        self.classes_ = np.arange(k)
        self.chosen_ = {"weights": [round(float(w), 4) for w in self._weights]}
        return self

    def predict_proba(self, X: Array) -> Floats:
        """Return probabilities, (n, K)."""
        return probabilities(np.tensordot(_logs(X), self._weights, (1, 0)) + self._intercepts)


def vote_out_of_fold(
    X: Floats, pairs: Sequence[Array | None], y: NDArray[np.int64], folds: NDArray[np.int64]
) -> Floats:
    """Return the vote on each row by weights that are learned without its fold, (n, K).

    X (n, M, K) holds the out-of-fold probabilities of M models, y (n,), folds (n,) in 0..F-1. `pairs` has for each
    model (n, F, K), what it says of row i when it has seen neither fold f nor the row's own: from these the weights for
    fold f are learned. With None for it, as in a plain stack, from X instead: by models that had seen fold f, whose
    score on noise is above chance.
    """
    proba = np.zeros((len(X), X.shape[2]))
    for fold in np.unique(folds).tolist():
        own = folds == fold
        inputs = np.stack([X[~own, m] if p is None else p[~own, fold] for m, p in enumerate(pairs)], axis=1)
        proba[own] = Stack().fit(inputs, y[~own]).predict_proba(X[own])
    return proba


def _logs(X: Array) -> Floats:
    return np.log(np.maximum(np.asarray(X, dtype=np.float64), _LEAST))
