"""Ridge regression on the labels, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import FEWEST_FOLDS, Array, silent, standardisation
from models.heads.linear import Linear, probabilities
from models.logistic_path.arrays import Arrays, arrays_on, in_turn, one_thread
from models.metrics.calibration import Platt, fit_platt

Floats = NDArray[np.float64]


class Ridge(Linear):
    """Least squares on the classes as -1 and 1 (Hoerl & Kennard 1970), made probabilities by Platt's sigmoid.

    The penalty is the one of least held-out squared error in grouped folds; the sigmoid is fitted on the same held-out
    scores. The sums over all rows less those over some folds give every solution: the features are read twice.
    """

    penalties = np.logspace(-3, 1, 9)  # for a row of standardised features

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Choose the penalty by grouped folds, solve on all rows, scale the scores to log odds."""
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        return self.on_device(X.size, lambda device: self._fitted(_rows(X, y, folds, device)))

    @one_thread()
    def _fitted(self, rows: _Rows) -> Self:
        solved = in_turn(rows.arrays, lambda f: _solve(rows.without(f), self.penalties), [*rows.parts])
        return self._settle(rows, dict(zip(rows.parts, solved, strict=True)))

    def fit_folds(
        self, X: Array, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> Floats | None:
        """Fit on all rows and return probabilities without each fold (F, n, K); the inner folds are the other folds."""
        if len(np.unique(folds)) < FEWEST_FOLDS:
            return None
        return self.on_device(X.size, lambda device: self._fitted_folds(_rows(X, y, folds, device), progress))

    @one_thread()
    def _fitted_folds(self, rows: _Rows, progress: Callable[[int, int], None]) -> Floats:
        done, pairs = 0, list(combinations(rows.parts, 2))
        proba = np.zeros((len(rows.parts), len(rows.y), int(rows.y.max()) + 1))
        inner = {}
        solved = in_turn(rows.arrays, lambda pair: _solve(rows.without(*pair), self.penalties), pairs)
        for pair, model in zip(pairs, solved, strict=True):
            inner[frozenset(pair)] = model
            done += 1
            progress(done, len(pairs) + len(rows.parts))
        singles = {}
        for i, fold in enumerate(rows.parts):
            singles[fold] = _solve(rows.without(fold), self.penalties)
            others = {f: inner[frozenset((f, fold))] for f in rows.parts if f != fold}
            best, platt, _ = self._chosen(rows, others)
            for f, model in {**others, fold: singles[fold]}.items():
                at = rows.folds == f
                proba[i, at] = platt(probabilities(rows.scores(at, model)[best]))
            done += 1
            progress(done, len(pairs) + len(rows.parts))
        self._settle(rows, singles)
        return proba

    def _chosen(self, rows: _Rows, models: Mapping[int, _Model]) -> tuple[int, Platt, float]:
        """Return the best penalty's place, the sigmoid and the error, of models (fold that they lack -> model)."""
        at = np.isin(rows.folds, list(models))
        held = np.zeros((len(self.penalties), *rows.targets.shape))
        for fold, model in models.items():
            own = rows.folds == fold
            held[:, own] = rows.scores(own, model)
        errors = np.square(held[:, at] - rows.targets[at]).mean(axis=(1, 2))
        best = int(errors.argmin())
        return best, fit_platt(rows.y[at], probabilities(held[best, at])), float(errors[best])

    def _settle(self, rows: _Rows, models: Mapping[int, _Model]) -> Self:
        """Solve on all rows at the penalty that the models, each of which lacks a fold, choose."""
        best, platt, error = self._chosen(rows, models)
        k = int(rows.y.max()) + 1
        model = _solve(rows.without(), self.penalties[best : best + 1])
        shifts = np.array(platt.intercepts)
        self.coef_ = platt.slope * model.weights[0].T / rows.std
        self.intercept_ = platt.slope * model.intercepts[0] + (np.diff(shifts) if k == 2 else shifts)
        self.intercept_ -= self.coef_ @ rows.mean
        self.classes_ = np.arange(k)
        self.chosen_ = {"penalty": float(self.penalties[best]), "held_out_squared_error": error}
        return self


class _Sums(NamedTuple):
    """Sums over rows, in float64 on the device, from which a ridge solution follows."""

    arrays: Arrays
    n: int
    x: Array  # (d,)
    t: Array  # (K',)
    xx: Array  # (d, d)
    xt: Array  # (d, K')


class _Rows(NamedTuple):
    """All rows, standardised as a whole, and the sums over each fold."""

    arrays: Arrays
    Z: Array  # (n, d) float32, on the device
    mean: NDArray[np.float32]  # (d,)
    std: NDArray[np.float32]  # (d,)
    y: NDArray[np.int64]  # (n,)
    targets: Floats  # (n, K') -1 and 1; one column for two classes
    folds: NDArray[np.int64]  # (n,)
    parts: dict[int, _Sums]  # fold -> its sums

    def without(self, *folds: int) -> _Sums:
        """Return the sums over the rows of all other folds."""
        kept = [part[1:] for fold, part in self.parts.items() if fold not in folds]
        sums: Any = [sum(columns) for columns in zip(*kept, strict=True)]
        return _Sums(self.arrays, *sums)

    def scores(self, at: NDArray[np.bool_], model: _Model) -> Floats:
        """Return the scores (S, m, K') of some rows (n,) for every penalty."""
        arrays = self.arrays
        x, weights = arrays.cast(self.Z[np.flatnonzero(at)], "float64"), arrays.put(model.weights)
        return arrays.get(x @ weights) + model.intercepts[:, None]


class _Model(NamedTuple):
    """Ridge solutions for each penalty."""

    weights: Floats  # (S, d, K')
    intercepts: Floats  # (S, K')


def _rows(X: Array, y: NDArray[np.int64], folds: NDArray[np.int64], device: str) -> _Rows:
    (mean, std), arrays, k = standardisation(X), arrays_on(device), int(y.max()) + 1
    Z = arrays.put(((X - mean) / std).astype(np.float32))
    targets = 2 * np.eye(k)[y] - 1
    targets = targets[:, 1:] if k == 2 else targets
    own = {f: np.flatnonzero(folds == f) for f in np.unique(folds).tolist()}
    parts = {f: _summed(arrays, Z[at], targets[at]) for f, at in own.items()}
    return _Rows(arrays, Z, mean, std, y, targets, folds, parts)


def _summed(arrays: Arrays, Z: Array, targets: Floats) -> _Sums:
    """Return the sums over rows, in float64: a feature that only some folds have must cancel in the others."""
    x, t = arrays.cast(Z, "float64"), arrays.put(targets)
    return _Sums(arrays, len(x), x.sum(0), t.sum(0), x.T @ x, x.T @ t)


def _solve(sums: _Sums, penalties: Floats) -> _Model:
    """Return the solutions for every penalty, features standardised on these very rows, intercepts not penalised."""
    arrays, xp = sums.arrays, sums.arrays.xp
    mean, middle = sums.x / sums.n, sums.t / sums.n
    centred = sums.xx - sums.n * (mean[:, None] * mean)
    variance = centred.diagonal() / sums.n
    scale = xp.where(variance > 1e-8, 1 / xp.sqrt(xp.clip(variance, 1e-8, None)), 0)
    centred *= scale
    centred *= scale[:, None]
    right = (sums.xt - sums.n * (mean[:, None] * middle)) * scale[:, None]
    weights, place = [], np.arange(len(mean))
    for penalty in penalties.tolist():
        regular = centred + 0
        regular[place, place] += penalty * sums.n
        found = arrays.solve(arrays.cholesky(regular), right)
        weights.append(arrays.get(found * scale[:, None]))
    W = np.stack(weights)
    return _Model(W, arrays.get(middle) - arrays.get(mean) @ W)
