"""Logistic regression on pyramid-pooled maps: what is there, and roughly where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.pooling import grid
from models.heads.channels import ROWS, Channels, principal_channels
from models.heads.head import Array, silent
from models.heads.linear import Logistic

__all__ = ["Spatial"]


class Spatial:
    """Means of the principal channels over 1x1, 2x2 and 3x3 cells (Lazebnik, Schmid & Ponce 2006), then `logistic`.

    Which side of a chest film is opaque, and how high, is lost in a mean over the whole picture.
    """

    channels, cells = 128, (1, 2, 3)

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen_: dict[str, Any] = {}
        self.classes_: NDArray[np.int64]
        self._channels: Channels
        self._linear = Logistic(seed=seed)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Learn the channels from X (n, C, H, W), then the linear head on the pyramid."""
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        self._linear.fit(self._pyramid(X), y, groups)
        self.classes_, self.chosen_ = self._linear.classes_, self._linear.chosen_
        return self

    def fit_folds(
        self, X: Array, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return nested out-of-fold probabilities (n, K), as `Logistic.fit_folds`.

        The channels are learned once, from all rows: labels have no part in them.
        """
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        held = self._linear.fit_folds(self._pyramid(X), y, folds, progress)
        if held is not None:
            self.classes_, self.chosen_ = self._linear.classes_, self._linear.chosen_
        return held

    def _pyramid(self, X: Array) -> NDArray[np.float32]:
        """Return the pooled channels of X (n, C, H, W) side by side, (n, 14 c)."""
        pieces = []
        for i in range(0, len(X), ROWS):
            block = X[i : i + ROWS]
            Z = self._channels.project(block).reshape(len(block), -1, *block.shape[2:])
            pieces.append(np.concatenate([grid(Z, size) for size in self.cells], axis=1))
        return np.concatenate(pieces)

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        return self._linear.predict_proba(self._pyramid(X))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the channels and the linear head."""
        values, arrays = self._linear.state()
        return values, {"mean": self._channels.mean, "basis": self._channels.basis, **arrays}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over channels and linear head."""
        self._channels = Channels(arrays["mean"], arrays["basis"])
        self._linear.restore(values, arrays)
        return self
