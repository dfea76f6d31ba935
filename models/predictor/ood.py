"""How unlike the training images an image is, from their features' mean and leading directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import standardisation

Floats = NDArray[np.float64]
QUANTILE = 0.99  # of the distances of training images that were held out, which one in a hundred exceeds
QUANTILES = 101  # of those distances, which travel with a bundle
MOST = 20_000  # images that are learned from
DIRECTIONS = 64  # at most, and one for every EACH images
EACH = 8
FOLDS = 5
_LEAST = 1e-6  # variance of standardised features
_RARE = 0.1  # of the mean deviation: a feature that hardly ever stirs must not drown the others when it does


@dataclass(frozen=True, eq=False)
class Novelty:
    """A Gaussian of the training features: a mean, some directions with their variances, one variance for the rest."""

    mean: NDArray[np.float32]  # (d,)
    directions: NDArray[np.float32]  # (d, r), of standardised features
    scale: NDArray[np.float32]  # (d,) what a standardised feature is divided by
    variances: Floats  # (r,)
    rest: float
    threshold: float = np.inf
    quantile: float = QUANTILE
    held: Floats | None = None  # (QUANTILES,) rising quantiles, 0 to 1, of the distances of held-out training images

    def distance(self, X: NDArray[Any]) -> Floats:
        """Return the Mahalanobis distance of features (n, d) by the root of d, (n,): about 1 for training images.

        Lee et al. 2018 (arXiv:1807.03888) with the covariance of probabilistic principal components (Tipping & Bishop
        1999, J. R. Stat. Soc. B 61:611), for which no training image's features have to travel: what lies outside
        of the leading directions counts with the mean variance there.
        """
        Z = ((X.astype(np.float64) - self.mean) / self.scale).astype(np.float64)
        along = Z @ self.directions.astype(np.float64)
        inside = np.square(along)
        outside = np.maximum(np.square(Z).sum(axis=1) - inside.sum(axis=1), 0)
        return np.asarray(np.sqrt(((inside / self.variances).sum(axis=1) + outside / self.rest) / Z.shape[1]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, for safetensors; the numbers beside them go to JSON."""
        known = {name: getattr(self, name) for name in ("mean", "directions", "scale", "variances", "held")}
        return {name: array for name, array in known.items() if array is not None}


def fit_novelty(X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[np.str_], *, seed: int = 0) -> Novelty:
    """Learn what the features (n, d) of training images are like.

    The threshold is the QUANTILE of the distances of images whose group was held out, in five grouped folds. Labels
    only balance the folds. Raises BadDataset where a class has a single group.
    """
    folds = grouped_folds(y, groups, FOLDS, seed=seed)
    held = np.empty(len(X))
    for fold in np.unique(folds):
        own = folds == fold
        held[own] = _gaussian(X[~own], seed).distance(X[own])
    whole = _gaussian(X, seed)
    threshold = float(np.quantile(held, QUANTILE, method="higher"))
    return replace(whole, threshold=threshold, quantile=QUANTILE, held=np.quantile(held, np.linspace(0, 1, QUANTILES)))


def _gaussian(X: NDArray[np.float32], seed: int) -> Novelty:
    """Fit without a threshold."""
    from sklearn.utils.extmath import randomized_svd

    mean, std = standardisation(X)
    scale = np.maximum(std, _RARE * std.mean()).astype(np.float32)
    Z = ((X - mean) / scale).astype(np.float32)
    n, d = Z.shape
    r = max(1, min(DIRECTIONS, n // EACH, d - 1))
    _, values, directions = randomized_svd(Z, r, random_state=seed)
    variances = np.maximum(np.square(values.astype(np.float64)) / n, _LEAST)
    total = float(np.square(Z, dtype=np.float64).sum()) / n
    rest = max((total - float(variances.sum())) / max(d - r, 1), _LEAST)
    return Novelty(mean, np.ascontiguousarray(directions.T), scale, variances, rest)
