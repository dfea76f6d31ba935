"""k-nearest neighbours by cosine similarity, votes weighted by similarity."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import grouped_folds
from models.heads.head import Array, Head, log_loss, standardisation

_BLOCK = 512  # rows compared with all others at once


class Neighbours(Head):
    """The k most similar training images vote, weighted by exp(similarity / 0.07), as in DINO (arXiv:2104.14294).

    Features are standardised; k is the one with the least held-out log loss in grouped folds.
    """

    candidates, temperature = (5, 10, 20, 40, 80, 160), 0.07
    saved: ClassVar = {"rows": "_rows", "y": "_y", "mean": "_mean", "std": "_std"}

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Keep the training rows and choose k."""
        self._mean, self._std = standardisation(X)
        self._rows, self._y = self._unit(X), y.astype(np.int64)
        self.classes_ = np.arange(int(y.max()) + 1)
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        candidates = [k for k in self.candidates if k < len(y) // 2] or [1]
        proba = self._vote(self._rows, candidates, folds)
        losses = [log_loss(y, p) for p in proba]
        self.chosen_ = {"k": candidates[int(np.argmin(losses))]}
        return self

    def _unit(self, X: Array) -> NDArray[np.float32]:
        """Return standardised rows of length 1."""
        Z = ((X - self._mean) / self._std).astype(np.float32)
        return np.asarray(Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12))

    def _vote(
        self, Z: NDArray[np.float32], candidates: list[int], folds: NDArray[np.int64] | None = None
    ) -> list[NDArray[np.float64]]:
        """Return probabilities for every k; with `folds`, rows of the own fold have no vote."""
        out = [np.empty((len(Z), len(self.classes_))) for _ in candidates]
        most = min(max(candidates), len(self._rows) - 1)
        for start in range(0, len(Z), _BLOCK):
            similar = Z[start : start + _BLOCK] @ self._rows.T
            if folds is not None:
                similar[folds[start : start + _BLOCK, None] == folds[None, :]] = -np.inf
            near = np.argpartition(-similar, most - 1, axis=1)[:, :most]
            value = np.take_along_axis(similar, near, axis=1).astype(np.float64)
            order = np.argsort(-value, axis=1, kind="stable")
            near, value = np.take_along_axis(near, order, axis=1), np.take_along_axis(value, order, axis=1)
            votes = np.exp((value - value[:, :1]) / self.temperature)
            for k, proba in zip(candidates, out, strict=True):
                for c in self.classes_:
                    proba[start : start + _BLOCK, c] = (votes[:, :k] * (self._y[near[:, :k]] == c)).sum(axis=1)
        # One vote is spread over all classes, so that no class is ever impossible.
        smooth = [(p + 1 / p.shape[1]) for p in out]
        return [p / p.sum(axis=1, keepdims=True) for p in smooth]

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        return self._vote(self._unit(X), [self.chosen_["k"]])[0]
