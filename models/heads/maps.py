"""A 1x1 convolution on feature maps: every position votes, and the votes are a class map for free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.folds import held_out
from models.heads.head import Array, log_loss
from models.heads.linear import probabilities

__all__ = ["MapHead"]

_ROWS = 256  # pictures converted to float32 at once


class MapHead:
    """Logits per position, pooled by log-mean-exp over positions (Pinheiro & Collobert 2015, arXiv:1411.6228).

    A plain mean over positions would be a linear head on average-pooled features; log-mean-exp lets the strongest
    positions speak louder. Adam, weight decay, early stopping on a grouped fifth of the rows.
    """

    most_epochs, patience, batch, rate, decay, sharpness = 60, 8, 64, 2e-3, 1e-2, 1.0

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
        mean, std = _channel_statistics(X)
        held = held_out(y, groups, seed=self.seed)
        train, rng = np.flatnonzero(~held), np.random.default_rng(self.seed)
        centre, scale = torch.from_numpy(mean), torch.from_numpy(std)
        weights = torch.zeros(len(self.classes_), X.shape[1], requires_grad=True)
        bias = torch.zeros(len(self.classes_), requires_grad=True)
        decayed = [{"params": [weights], "weight_decay": self.decay}, {"params": [bias], "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(decayed, lr=self.rate)
        best, epoch_of_best = np.inf, 0
        for epoch in range(self.most_epochs):
            order = rng.permutation(train)
            for start in range(0, len(order), self.batch):
                at = np.sort(order[start : start + self.batch])
                maps = torch.from_numpy(X[at]).float().flatten(2)
                raw = weights / scale  # standardises without a standardised copy of the maps
                votes = raw @ maps + (bias - raw @ centre)[:, None]
                pooled = torch.logsumexp(votes * self.sharpness, 2) / self.sharpness
                loss = torch.nn.functional.cross_entropy(pooled, torch.from_numpy(y[at]))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            self._set(weights.detach().numpy(), bias.detach().numpy(), mean, std)
            held_loss = log_loss(y[held], self.predict_proba(X[held]))
            if held_loss < best:
                best, epoch_of_best, kept = held_loss, epoch, (self._weights, self._bias)
            if epoch - epoch_of_best >= self.patience:
                break
        self._weights, self._bias = kept
        self.chosen_ = {"epochs": epoch_of_best + 1}
        return self

    def _set(self, weights: Array, bias: Array, mean: Array, std: Array) -> None:
        """Take over weights found on standardised maps, in the units of X."""
        self._weights = weights / std
        self._bias = bias - self._weights @ mean

    def class_maps(self, X: Array) -> NDArray[np.float32]:
        """Return the votes of every position, (n, K, H, W): the evidence for each class where it lies."""
        pieces = [
            np.einsum("kc,nchw->nkhw", self._weights, X[i : i + _ROWS].astype(np.float32), optimize=True)
            for i in range(0, len(X), _ROWS)
        ]
        return np.asarray(np.concatenate(pieces) + self._bias[:, None, None], dtype=np.float32)

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        votes = self.class_maps(X).reshape(len(X), len(self._bias), -1).astype(np.float64) * self.sharpness
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


def _channel_statistics(X: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each channel over rows and positions, (C,) each."""
    total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for i in range(0, len(X), _ROWS):
        piece = X[i : i + _ROWS].astype(np.float32)
        total += piece.sum(axis=(0, 2, 3), dtype=np.float64)
        squares += np.square(piece).sum(axis=(0, 2, 3), dtype=np.float64)
    count = X.shape[0] * X.shape[2] * X.shape[3]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32)
