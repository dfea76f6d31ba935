"""A 1x1 convolution on feature maps: every position votes, and the votes are a class map for free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.heads.channels import ROWS, coarse, principal_channels
from models.heads.descent import descend
from models.heads.head import Array
from models.heads.linear import probabilities

__all__ = ["MapHead"]


class MapHead:
    """Logits per position, pooled by log-mean-exp over positions (Pinheiro & Collobert 2015, arXiv:1411.6228).

    A plain mean over positions would be a linear head on average-pooled features; log-mean-exp lets the strongest
    positions speak louder. Large maps vote in 7 x 7 parts. The convolution is learned in the principal channels, by
    Adam with weight decay.
    """

    channels, rate, decay, sharpness = 128, 4e-3, 1e-2, 1.0

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen_: dict[str, Any] = {}
        self.classes_: NDArray[np.int64]
        self._weights: Array  # (K, C), in the units of X
        self._bias: Array  # (K,)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train on X (n, C, H, W) and keep the weights of the best epoch."""
        import torch

        self.classes_ = np.arange(int(y.max()) + 1)
        found = principal_channels(X, self.channels, seed=self.seed)
        Z, labels = torch.from_numpy(found.positions(X)), torch.from_numpy(y)
        weights = torch.zeros(len(self.classes_), Z.shape[1], requires_grad=True)
        bias = torch.zeros(len(self.classes_), requires_grad=True)
        decayed = [{"params": [weights], "weight_decay": self.decay}, {"params": [bias], "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(decayed, lr=self.rate)

        def loss(at: NDArray[np.intp]) -> torch.Tensor:
            votes = weights @ Z[at] + bias[:, None]
            pooled = torch.logsumexp(votes * self.sharpness, 2) / self.sharpness
            return torch.nn.functional.cross_entropy(pooled, labels[at])

        epochs = descend(optimiser, loss, [weights, bias], y, groups, seed=self.seed)
        self._weights = (weights.detach().numpy() @ found.basis.T).astype(np.float64)
        self._bias = bias.detach().numpy() - self._weights @ found.mean
        self.chosen_ = {"epochs": epochs}
        return self

    def class_maps(self, X: Array) -> NDArray[np.float32]:
        """Return the votes of every position, (n, K, H, W): the evidence for each class where it lies."""
        weights, shape = self._weights.astype(np.float32), X.shape[2:]
        blocks = (X[i : i + ROWS] for i in range(0, len(X), ROWS))
        pieces = [weights @ block.reshape(*block.shape[:2], -1).astype(np.float32) for block in blocks]
        votes = np.concatenate(pieces).reshape(len(X), len(weights), *shape)
        return np.asarray(votes + self._bias[:, None, None], dtype=np.float32)

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        votes = coarse(self.class_maps(X)).reshape(len(X), len(self._bias), -1).astype(np.float64) * self.sharpness
        highest = votes.max(axis=2, keepdims=True)
        pooled = highest[..., 0] + np.log(np.exp(votes - highest).mean(axis=2))
        return probabilities(pooled / self.sharpness)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the convolution."""
        return {}, {"weights": self._weights, "bias": self._bias}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over the convolution."""
        self._weights, self._bias = arrays["weights"], arrays["bias"]
        return self
