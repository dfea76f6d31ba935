"""Class probabilities at another prevalence, and the prevalence of unlabelled images (Saerens et al. 2002)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.sample import BadPredictions, Floats

_STEPS, _CONVERGED = 10_000, 1e-10


def at_prevalence(proba: ArrayLike, trained: ArrayLike, target: ArrayLike) -> Floats:
    """Return probabilities (n, K) as they are where classes have other shares than in training.

    proba (n, K) calibrated for the class shares `trained` (K,), all above 0; `target` (K,) the shares to go by. Bayes'
    rule with the same images within each class (Saerens, Latinne & Decaestecker 2002, Neural Computation 14:21,
    equation 2.4). Raises BadPredictions.
    """
    given = np.asarray(proba, dtype=np.float64)
    before, after = (_shares(shares, given.shape[1]) for shares in (trained, target))
    if not (before > 0).all():
        raise BadPredictions(f"expected training shares above 0 of every class, got {before.tolist()}")
    weighted = given * (after / before)
    total = weighted.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weighted, total, out=given.copy(), where=total > 0))


def estimated_prevalence(proba: ArrayLike, trained: ArrayLike) -> Floats:
    """Return the maximum likelihood estimate of the class shares (K,) among unlabelled images.

    proba (n, K) calibrated for the class shares `trained` (K,). The expectation maximisation of Saerens, Latinne &
    Decaestecker 2002, equation 2.9. It is as good as the calibration is, and as the classes are told apart. Raises
    BadPredictions.
    """
    given = np.asarray(proba, dtype=np.float64)
    shares = _shares(trained, given.shape[1])
    for _ in range(_STEPS):
        better: Floats = at_prevalence(given, trained, shares).mean(axis=0)
        if np.abs(better - shares).max() < _CONVERGED:
            return better
        shares = better
    return shares


def _shares(shares: ArrayLike, classes: int) -> Floats:
    given = np.asarray(shares, dtype=np.float64)
    if given.shape != (classes,) or not (given >= 0).all() or abs(given.sum() - 1) > 1e-6:
        raise BadPredictions(f"expected {classes} class shares that sum to 1, got {given.tolist()}")
    return np.asarray(given / given.sum())
