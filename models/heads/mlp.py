"""A multi-layer perceptron with one hidden layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import held_out
from models.heads.head import Array, Head, log_loss, standardisation
from models.heads.linear import probabilities
from models.logistic_path import one_thread


class Perceptron(Head):
    """128 ReLU units by Adam (scikit-learn), stopped when the log loss of a grouped fifth stops falling."""

    units, most_epochs, patience = 128, 100, 8
    _layers: list[Array]  # weights and biases in turn, in the units of X

    @one_thread()
    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train epoch by epoch and keep the weights of the best one."""
        from sklearn.neural_network import MLPClassifier

        mean, std = standardisation(X)
        Z = ((X - mean) / std).astype(np.float32)
        self.classes_ = np.arange(int(y.max()) + 1)
        held = held_out(y, groups, seed=self.seed)
        network = MLPClassifier(
            (self.units,), alpha=1e-3, batch_size=min(64, int((~held).sum())), random_state=self.seed
        )
        best, epoch_of_best = np.inf, 0
        for epoch in range(self.most_epochs):
            network.partial_fit(Z[~held], y[~held], classes=self.classes_)
            layers = _copy(network)
            loss = log_loss(y[held], _forward(layers, Z[held]))
            if loss < best:
                best, epoch_of_best, self._layers = loss, epoch, layers
            if epoch - epoch_of_best >= self.patience:
                break
        first, bias = self._layers[0] / std[:, None], self._layers[1]
        self._layers[:2] = [first, bias - mean @ first]
        self.chosen_ = {"epochs": epoch_of_best + 1}
        return self

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        return _forward(self._layers, X)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return weights and biases."""
        return {}, {f"layer{i}": layer for i, layer in enumerate(self._layers)}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over weights and biases."""
        self._layers = [arrays[f"layer{i}"] for i in range(4)]
        return self


def _copy(network: Any) -> list[Array]:
    pairs = zip(network.coefs_, network.intercepts_, strict=True)
    return [np.array(layer) for pair in pairs for layer in pair]


def _forward(layers: list[Array], X: Array) -> NDArray[np.float64]:
    hidden = np.maximum(X @ layers[0] + layers[1], 0)
    return probabilities(np.asarray(hidden @ layers[2] + layers[3], dtype=np.float64))
