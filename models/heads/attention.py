"""Attention over map positions: the head learns where to look, then reads what it sees there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.heads.channels import ROWS, Channels, coarse, principal_channels
from models.heads.descent import descend
from models.heads.head import Array
from models.heads.linear import probabilities

__all__ = ["Attention"]

_NAMES = ("look_tanh", "look_gate", "look", "weights", "bias")


class Attention:
    """Gated attention pooling (Ilse, Tomczak & Welling 2018, arXiv:1802.04712) in the principal channels.

    A position with channels z weighs softmax(u' (tanh(V z) * sigmoid(U z))) over the positions; a linear layer reads
    the weighted mean. Large maps are seen in 7 x 7 parts. Adam with weight decay, early stopping on a grouped fifth.
    """

    channels, hidden, rate, decay = 64, 32, 2e-3, 1e-2

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen_: dict[str, Any] = {}
        self.classes_: NDArray[np.int64]
        self._channels: Channels
        self._layers: dict[str, Array]

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train on X (n, C, H, W) and keep the weights of the best epoch."""
        import torch

        self.classes_ = np.arange(int(y.max()) + 1)
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        Z, labels = torch.from_numpy(self._channels.positions(X)), torch.from_numpy(y)
        layers = [torch.from_numpy(a).requires_grad_() for a in self._drawn(Z.shape[1])]
        optimiser = torch.optim.AdamW(layers, lr=self.rate, weight_decay=self.decay)

        def loss(at: NDArray[np.intp]) -> torch.Tensor:
            maps = Z[at]
            tanh, gate, look, weights, bias = layers
            seen = torch.tanh(tanh @ maps) * torch.sigmoid(gate @ maps)
            share = torch.softmax((look[:, None] * seen).sum(1), 1)
            pooled = (maps @ share[..., None])[..., 0]
            return torch.nn.functional.cross_entropy(pooled @ weights.T + bias, labels[at])

        epochs = descend(optimiser, loss, layers, y, groups, seed=self.seed)
        self._layers = {name: a.detach().numpy() for name, a in zip(_NAMES, layers, strict=True)}
        self.chosen_ = {"epochs": epochs}
        return self

    def _drawn(self, channels: int) -> list[NDArray[np.float32]]:
        """Return the first weights: attention drawn small, so that it starts near the plain mean, the rest zero."""
        rng = np.random.default_rng(self.seed)
        small = rng.normal(0, channels**-0.5, (2, self.hidden, channels)).astype(np.float32)
        look = rng.normal(0, self.hidden**-0.5, self.hidden).astype(np.float32)
        k = len(self.classes_)
        return [small[0], small[1], look, np.zeros((k, channels), np.float32), np.zeros(k, np.float32)]

    def attention(self, X: Array) -> NDArray[np.float32]:
        """Return the share of every coarse position in the decision, (n, h, w), summing to 1 over positions."""
        pieces = [self._shares(self._channels.positions(X[i : i + ROWS])) for i in range(0, len(X), ROWS)]
        return np.concatenate(pieces).reshape(len(X), *coarse(X[:1]).shape[2:])

    def _shares(self, Z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the attention (n, P) over the positions of projected maps (n, c, P)."""
        from scipy.special import expit

        gate = expit(self._layers["look_gate"] @ Z)
        score = np.einsum("h,nhp->np", self._layers["look"], np.tanh(self._layers["look_tanh"] @ Z) * gate)
        share = np.exp(score - score.max(axis=1, keepdims=True))
        return np.asarray(share / share.sum(axis=1, keepdims=True), dtype=np.float32)

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, K)."""
        pieces = []
        for i in range(0, len(X), ROWS):
            Z = self._channels.positions(X[i : i + ROWS])
            pooled = (Z @ self._shares(Z)[..., None])[..., 0].astype(np.float64)
            pieces.append(pooled @ self._layers["weights"].T + self._layers["bias"])
        return probabilities(np.concatenate(pieces))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the channels and the layers."""
        return {}, {"mean": self._channels.mean, "basis": self._channels.basis, **self._layers}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over channels and layers."""
        self._channels = Channels(arrays["mean"], arrays["basis"])
        self._layers = {name: arrays[name] for name in _NAMES}
        return self
