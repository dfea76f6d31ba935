"""Ridge regression on the labels, in closed form."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import Array, standardisation
from models.heads.linear import Linear, probabilities
from models.metrics.calibration import fit_platt

__all__ = ["Ridge"]

Floats = NDArray[np.float64]


class Ridge(Linear):
    """Least squares on the classes as -1 and 1 (Hoerl & Kennard 1970), made probabilities by Platt's sigmoid.

    The penalty is the one of least held-out squared error in grouped folds; the sigmoid is fitted on the same held-out
    scores. Every fold's Gram matrix is the whole one less the fold's own part, so that the features are read twice.
    """

    penalties = np.logspace(-4, 1, 11)  # a row of standardised features at a time

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Choose the penalty by grouped folds, solve on all rows, scale the scores to log odds."""
        k = int(y.max()) + 1
        mean, std = standardisation(X)
        Z = ((X - mean) / std).astype(np.float32)
        targets = 2 * np.eye(k)[y] - 1
        targets = targets[:, 1:] if k == 2 else targets
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        held = _held_out_scores(Z, targets, folds, self.penalties)
        errors = np.square(held - targets).mean(axis=(1, 2))
        best = int(errors.argmin())
        platt = fit_platt(y, probabilities(held[best]))
        whole = _moments(Z, targets)
        W, b = _solve(whole, self.penalties[best : best + 1])
        shifts = np.array(platt.intercepts)
        self.coef_ = platt.slope * W[0].T / std
        self.intercept_ = platt.slope * b[0] + (np.diff(shifts) if k == 2 else shifts) - self.coef_ @ mean
        self.classes_ = np.arange(k)
        self.chosen_ = {"penalty": float(self.penalties[best]), "held_out_squared_error": float(errors[best])}
        return self


class _Sums:
    """Sums over rows from which a ridge solution follows; those of a part can be taken away."""

    def __init__(self, n: int, x: Floats, t: Floats, xx: Floats, xt: Floats) -> None:
        self.n, self.x, self.t, self.xx, self.xt = n, x, t, xx, xt

    def less(self, part: _Sums) -> _Sums:
        """Return the sums over the rows that are not in `part`."""
        return _Sums(self.n - part.n, self.x - part.x, self.t - part.t, self.xx - part.xx, self.xt - part.xt)


def _moments(Z: NDArray[np.float32], targets: Floats) -> _Sums:
    """Return the sums over rows; products in float32, which the penalty is far above."""
    small = targets.astype(np.float32)
    xx, xt = (Z.T @ Z).astype(np.float64), (Z.T @ small).astype(np.float64)
    return _Sums(len(Z), Z.sum(axis=0, dtype=np.float64), targets.sum(axis=0), xx, xt)


def _solve(sums: _Sums, penalties: Floats) -> tuple[Floats, Floats]:
    """Return weights (S, d, K') and unpenalised intercepts (S, K') for every penalty a row."""
    from scipy.linalg import solve

    mean, middle = sums.x / sums.n, sums.t / sums.n
    centred = sums.xx - sums.n * np.outer(mean, mean)
    right = sums.xt - sums.n * np.outer(mean, middle)
    weights = []
    for penalty in penalties:
        regular = centred.copy()
        np.fill_diagonal(regular, regular.diagonal() + penalty * sums.n)
        weights.append(solve(regular, right, assume_a="pos", overwrite_a=True, check_finite=False))
    W = np.stack(weights)
    return W, middle - mean @ W


def _held_out_scores(Z: NDArray[np.float32], targets: Floats, folds: NDArray[np.int64], penalties: Floats) -> Floats:
    """Return the scores (S, n, K') of every row by the solutions that have not seen its fold."""
    whole = _moments(Z, targets)
    held = np.empty((len(penalties), *targets.shape))
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        W, b = _solve(whole.less(_moments(Z[own], targets[own])), penalties)
        held[:, own] = Z[own].astype(np.float64) @ W + b[:, None]
    return held
