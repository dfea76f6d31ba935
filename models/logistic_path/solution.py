"""The public interface: features, labels and folds in; certified coefficients and out-of-fold probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError
from models.logistic_path.arrays import ROWS, arrays_on, one_thread
from models.logistic_path.design import Moments, Standardised, exact_design, fast_design, moments
from models.logistic_path.out_of_core import sample_size, solve_out_of_core
from models.logistic_path.strengths import Task, solve_path

Features: TypeAlias = Any  # (n, d): an array, or rows read in slices, with shape, ndim, dtype and len


@dataclass(frozen=True)
class Sweep:
    """One logistic regression per fold and strength; K' is 1 for two classes, else the number of classes.

    `objective` is sum_i w_i logloss_i + ||W||^2 / (2 C), W in the units the penalty saw (standardised, if asked for).
    `gap` bounds (objective - minimum) / objective from above, by strong convexity, measured in float64 over the
    features as given.
    """

    strengths: NDArray[np.float64]  # (S,) C, as given
    coef: NDArray[np.float64]  # (F, S, K', d) in the features' own units
    intercept: NDArray[np.float64]  # (F, S, K')
    objective: NDArray[np.float64]  # (F, S)
    gap: NDArray[np.float64]  # (F, S)
    iterations: NDArray[np.int64]  # (F, S)
    converged: NDArray[np.bool_]  # (F, S) gap <= tol


def balanced(y: NDArray[np.int64], folds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return weights (F, n) under which all classes weigh the same in every fold, 0 for held-out rows.

    King and Zeng 2001, scikit-learn's class_weight="balanced": a row of class k weighs n_train / (K n_k).
    """
    own = np.arange(int(y.max()) + 1)[:, None] == y
    counts = np.maximum(folds.astype(np.float64) @ own.T, 1)
    weights: NDArray[np.float64] = folds * ((folds.sum(1)[:, None] / (len(own) * counts)) @ own)
    return weights


@one_thread()
def sweep(
    X: Features,
    y: NDArray[np.int64],
    *,
    strengths: Sequence[float] | NDArray[np.float64],
    folds: NDArray[np.bool_],
    standardize: bool = True,
    sample_weight: NDArray[Any] | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    device: str = "cpu",
) -> Sweep:
    """Solve scikit-learn's `LogisticRegression(C)` for every C of `strengths` on every fold, to a certified gap of tol.

    X is (n, d) float16, float32 or float64, y (n,) labels 0..K-1, `folds` (F, n) masks of training rows and
    `sample_weight` (n,) or (F, n). With `standardize`, each fold is centred and scaled by its own training rows, as
    `StandardScaler` does. The intercept is not penalised; more than two classes are multinomial (symmetric softmax).
    Float32 does the work and float64 the proof, on the `device` "cpu", "cuda[:n]" or "auto". Besides X it needs a copy
    of X in float32, at most 4 d^2 floats and a bounded batch. An X that is no array but gives rows for slices, such as
    `features.cache.reader.FeatureRows`, is read in blocks, once per step of all problems together, and never copied.
    Raises FirnError for arrays that do not fit together.
    """
    grid = np.asarray(strengths, np.float64)
    weight = _checked(X, y, grid, folds, sample_weight, tol)
    X = _in_memory(X)
    found = _moments(X, folds, standardize)
    exact = exact_design(arrays_on(device), X, weight, found)
    task = Task(exact, fast_design(exact, X, found), y, int(y.max()) + 1, tol, max_iter)
    return _assembled(task, grid, found)


@one_thread()
def sweep_findings(
    X: Features,
    matrix: NDArray[np.int64],
    *,
    strengths: Sequence[float] | NDArray[np.float64],
    folds: NDArray[np.bool_],
    tol: float = 1e-6,
    max_iter: int = 500,
    device: str = "cpu",
) -> list[Sweep]:
    """Return the sweep of each finding of a label matrix (n, L) of 0, 1 and -1: a missing label leaves its row out.

    Each is what `sweep` returns for the rows that have its label. Moments and the copy of X are made once for all.
    Raises FirnError as `sweep`.
    """
    grid, known = np.asarray(strengths, np.float64), matrix >= 0
    labels = [np.where(own, y, 0) for own, y in zip(known.T, matrix.T, strict=True)]
    weights = [_checked(X, y, grid, folds & own, None, tol) for own, y in zip(known.T, labels, strict=True)]
    X = _in_memory(X)
    patterns, pattern = np.unique(known, axis=1, return_inverse=True)
    found = _moments(X, np.concatenate([folds & own for own in patterns.T]), True)
    exact = exact_design(arrays_on(device), X, weights[0], found)
    fast = fast_design(exact, X, found)
    sweeps = []
    for y, weight, at in zip(labels, weights, pattern.ravel().tolist(), strict=True):
        own = slice(at * len(folds), (at + 1) * len(folds))
        task = Task(exact.of_folds(own, weight), fast.of_folds(own, weight), y, 2, tol, max_iter)
        sweeps.append(_assembled(task, grid, found._replace(mean=found.mean[own], scale=found.scale[own])))
    return sweeps


def _in_memory(X: Features) -> Features:
    """Return rows on the disk as an array where they are few."""
    return X if isinstance(X, np.ndarray) or len(X) > sample_size(X.shape[1]) else X[:]


def _moments(X: Features, folds: NDArray[np.bool_], standardize: bool) -> Moments:
    """Return the moments of the training rows. Raises FirnError for NaN and infinity."""
    found = moments(X, folds, standardize)
    if not np.isfinite(found.center).all():
        column = int(np.flatnonzero(~np.isfinite(found.center))[0])
        raise FirnError(
            f"finite features expected, but column {column} of X has NaN or infinity; extract the features again"
        )
    return found


def _checked(
    X: Features, y: NDArray[Any], grid: NDArray[Any], folds: NDArray[Any], given: NDArray[Any] | None, tol: float
) -> NDArray[np.float64]:
    """Return the row weights (F, n) of every fold, 0 for held-out rows, or say what does not fit."""
    n = len(y)
    if X.ndim != 2 or len(X) != n or X.dtype.kind != "f":
        raise FirnError(f"X (n, d) of floats with a row per label expected, got {X.dtype} {X.shape} and {n} labels")
    if folds.ndim != 2 or folds.shape[1] != n or folds.dtype != bool or not len(folds):
        raise FirnError(f"folds (F, {n}) of training masks expected, got {folds.dtype} {folds.shape}")
    if grid.ndim != 1 or not len(grid) or not np.all((grid > 0) & np.isfinite(grid)) or not tol > 0:
        raise FirnError(f"positive strengths and a positive tol expected, got C = {grid.tolist()} and tol = {tol}")
    weight = folds * (np.ones(n) if given is None else np.asarray(given, np.float64))
    if weight.shape != folds.shape or not np.all((weight >= 0) & np.isfinite(weight)):
        raise FirnError(f"sample_weight (n,) or (F, n), not negative, expected for n = {n}, F = {len(folds)}")
    if y.dtype.kind not in "iu" or n == 0 or y.min() < 0 or y.max() < 1:
        raise FirnError(
            "integer labels 0..K-1 of at least two classes expected; were all images put in one class folder?"
        )
    counts = weight @ (np.arange(int(y.max()) + 1)[:, None] == y).T
    for fold, label in np.argwhere(counts == 0)[:1]:
        raise FirnError(
            f"every class expected among the training rows, but fold {fold} has none of class {label}; use fewer folds"
        )
    return weight


def _assembled(task: Task, grid: NDArray[np.float64], found: Moments) -> Sweep:
    """Follow the path through the strengths, ascending, and return all solutions in the features' own units."""
    ascending, place = np.unique(grid, return_inverse=True)
    (folds, d), classes = found.mean.shape, 1 if task.classes == 2 else task.classes
    theta, numbers = np.zeros((folds, len(ascending), classes, d + 1)), np.zeros((3, folds, len(ascending)))
    on_disk = isinstance(task.fast.matrix, Standardised)
    for block in solve_out_of_core(task, found, ascending) if on_disk else solve_path(task, ascending):
        s, own = block.solution, slice(block.folds[0], block.folds[-1] + 1)
        theta[own, block.places] = _folds_first(task.exact.arrays.get(s.theta), len(block.folds))
        for kept, one in zip(numbers, (s.objective, s.gap, block.iterations), strict=True):
            kept[own, block.places] = _folds_first(one, len(block.folds))
    theta = theta[:, place]
    coef = theta[..., :-1] * found.scale[:, None, None]
    intercept = theta[..., -1] - (coef * found.mean[:, None, None]).sum(-1)
    objective, gap, iterations = numbers[:, :, place]
    return Sweep(grid, coef, intercept, objective, gap, iterations.astype(np.int64), gap <= task.tol)


def _folds_first(a: NDArray[Any], folds: int) -> NDArray[Any]:
    """Return (folds, strengths, ...) for problems (strengths x folds, ...)."""
    return a.reshape(-1, folds, *a.shape[1:]).swapaxes(0, 1)


@one_thread()
def out_of_fold(X: Features, result: Sweep, folds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return probabilities (S, n, K) of every row, by the models that have not seen it, for every strength.

    A row that several folds hold out gets the mean over them, a row that none does gets NaN.
    """
    _, s, scores, d = result.coef.shape
    total = np.zeros((s, len(X), max(2, scores)))
    coef, intercept = result.coef.reshape(len(folds), -1, d), result.intercept.reshape(len(folds), -1)
    for rows, x in _blocks(X):
        for fold, training in enumerate(folds[:, rows]):
            held = np.flatnonzero(~training)
            z = (x[held] @ coef[fold].T + intercept[fold]).reshape(len(held), s, scores)
            total[:, rows.start + held] += _probabilities(z).swapaxes(0, 1)
    count = (~folds).sum(0)[:, None]
    total /= np.where(count > 0, count, np.nan)
    return total


@one_thread()
def predicted(X: Features, result: Sweep, fold: int) -> NDArray[np.float64]:
    """Return probabilities (S, n, K) of X (n, d) under one fold's models, for every strength."""
    _, s, scores, d = result.coef.shape
    coef, intercept = result.coef[fold].reshape(-1, d), result.intercept[fold].reshape(-1)
    parts = [_probabilities((x @ coef.T + intercept).reshape(len(x), s, scores)) for _, x in _blocks(X)]
    return np.concatenate(parts or [np.empty((0, s, max(2, scores)))]).swapaxes(0, 1)


def _blocks(X: Features) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the rows of X in float64, block by block."""
    for start in range(0, len(X), 4 * ROWS):
        rows = slice(start, min(start + 4 * ROWS, len(X)))
        yield rows, X[rows].astype(np.float64)


def _probabilities(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax (..., K) of scores (..., K); a single score is that of class 1 against 0."""
    full = np.concatenate([np.zeros_like(z), z], -1) if z.shape[-1] == 1 else z
    shifted = np.exp(full - full.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
