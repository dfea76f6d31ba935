"""Updates of a frozen model's probabilities on a set from elsewhere, judged on groups that they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics import Calibration, Platt, fit_platt
from models.metrics.registry import SMALLEST

Floats = NDArray[np.float64]


def fit_intercept(y: ArrayLike, proba: ArrayLike) -> Platt:
    """Fit calibration in the large: Platt scaling with the slope held at 1; y (n,), proba (n, K).

    Steyerberg 2009, Clinical Prediction Models, section 20.2: the usual first update of a model at another place. With
    Platt's smoothed targets, as `fit_platt`. Raises BadPredictions.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    labels, logs = np.asarray(y), np.log(np.clip(np.asarray(proba, dtype=np.float64), SMALLEST, 1))
    k = logs.shape[1]
    counts = np.bincount(labels, minlength=k)
    targets = ((counts[:, None] * np.eye(k) + 1) / (counts[:, None] + k))[labels].mean(axis=0)

    def loss(free: Floats) -> tuple[float, Floats]:
        logits = logs + np.append(0.0, free)
        total = logsumexp(logits, axis=1)
        gap = np.exp(logits - total[:, None]).mean(axis=0) - targets
        return float(total.mean() - targets[1:] @ free), gap[1:]

    fitted = minimize(loss, np.zeros(k - 1), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Platt(1.0, (0.0, *map(float, fitted)))


RECALIBRATIONS: dict[str, Callable[[ArrayLike, ArrayLike], Platt]] = {"intercept": fit_intercept, "platt": fit_platt}


def crossfitted(
    make: Callable[[ArrayLike, ArrayLike], Calibration], y: NDArray[np.int64], proba: Floats, folds: NDArray[np.int64]
) -> Floats:
    """Return probabilities (n, K), those of each fold recalibrated by a fit on the other folds (n,)."""
    fitted = proba.copy()
    for fold in np.unique(folds):
        own = folds == fold
        fitted[own] = make(y[~own], proba[~own])(proba[own])
    return fitted
