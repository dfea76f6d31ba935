"""Probable label errors by confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70:1373)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import log_loss
from models.logistic_path import out_of_fold, sweep

MARGIN = -0.5  # most that p(label) - p(other class) may be: the other class has at least three times the probability
_FOLDS = 5
_STRENGTHS = np.logspace(-4, 0, 5)  # stronger fits follow wrong labels, and take long
_TOL = 1e-4  # of the objective: probabilities to three digits
Rows = NDArray[np.int64]


class Opinion(NamedTuple):
    """Probable label errors, worst first."""

    row: Rows  # (m,)
    suggested: Rows  # (m,) class
    margin: NDArray[np.float64]  # (m,) normalised margin p(label) - p(suggested), -1 to MARGIN
    confidence: NDArray[np.float64]  # (K,) mean probability of each class among its own: what counts as confident


def predict_out_of_fold(X: NDArray[Any], y: Rows, linked: Rows, *, seed: int = 0) -> NDArray[np.float64]:
    """Return out-of-fold probabilities (n, K) of a logistic head; no linked group is in two folds.

    The strength is the one of least held-out log loss. BadDataset where a class has fewer than two linked groups.
    """
    folds = grouped_folds(y, linked.astype(np.str_), _FOLDS, seed=seed)
    masks = np.stack([folds != fold for fold in range(int(folds.max()) + 1)])
    held = out_of_fold(X, sweep(X, y, strengths=_STRENGTHS, folds=masks, tol=_TOL), masks)
    best: NDArray[np.float64] = held[int(np.argmin([log_loss(y, proba) for proba in held]))]
    return best


def label_errors(y: Rows, proba: NDArray[np.float64], neighbours: Rows) -> Opinion:
    """Return the probable label errors of y (n,): both the model and the nearest neighbours contradict the label.

    The first is the confident joint: the row's probability of another class is at least the mean of that class among
    its own images, and the normalised margin is at most MARGIN. The second are the nearest images of other groups,
    `neighbours` (n, k) with -1 for none: most of them are of that class. A hard case moves one of the two, a wrong
    label both.
    """
    n, k = proba.shape
    rows = np.arange(n)
    confidence = np.array([proba[y == c, c].mean() if (y == c).any() else np.inf for c in range(k)])
    confident = np.where(proba >= confidence, proba, -1.0)
    suggested = confident.argmax(1).astype(np.int64)
    margin = proba[rows, y] - proba[rows, suggested]
    there = neighbours >= 0
    agree = (there & (y[neighbours] == suggested[:, None])).sum(1)
    wrong = (confident.max(1) > 0) & (suggested != y) & (margin <= MARGIN) & (2 * agree > there.sum(1))
    row = np.flatnonzero(wrong)
    row = row[np.argsort(margin[row], kind="stable")]
    return Opinion(row, suggested[row], margin[row], confidence)
