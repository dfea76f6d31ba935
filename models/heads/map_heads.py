"""Heads on feature maps: 1x1 convolution, gated attention pooling, spatial pyramid; all in principal channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from features.views import grid
from models.heads.head import Array, Head, silent, tensor_on, train_until_stale
from models.heads.linear import Logistic, probabilities
from models.logistic_path import one_thread

SIDE = 7  # positions a side that heads look at; the last maps of most backbones
ROWS = 256  # images converted to float32 at once
_POSITIONS = 8_192  # positions, of all images, that the directions are learned from


class Channels(NamedTuple):
    """`(x - mean) @ basis` for the channels x of a position: the leading principal components of standardised ones."""

    mean: NDArray[np.float32]  # (C,)
    basis: NDArray[np.float32]  # (C, c)

    def positions(self, X: Array) -> NDArray[np.float32]:
        """Return the principal channels of X (n, C, H, W) at its `coarse` positions, (n, c, P)."""
        pieces = []
        for i in range(0, len(X), ROWS):
            block = X[i : i + ROWS]
            Z = coarse(self.project(block).reshape(len(block), -1, *block.shape[2:]))
            pieces.append(Z.reshape(*Z.shape[:2], -1))
        return np.concatenate(pieces)

    @one_thread()  # a product for each image
    def project(self, X: Array) -> NDArray[np.float32]:
        """Return X (n, C, H, W) of any precision as (n, c, H * W), float32."""
        n, channels = X.shape[:2]
        positions = int(np.prod(X.shape[2:]))
        out = np.empty((n, self.basis.shape[1], positions), np.float32)
        shift = (self.mean @ self.basis)[:, None]
        for i in range(0, n, ROWS):
            block = X[i : i + ROWS].reshape(-1, channels, positions).astype(np.float32)
            np.subtract(self.basis.T @ block, shift, out=out[i : i + ROWS])
        return out


def coarse(maps: Array) -> Array:
    """Return maps (n, c, H, W) averaged to SIDE x SIDE positions; those that are no larger as they are."""
    if min(maps.shape[2:]) <= SIDE:
        return maps
    return grid(maps, SIDE).reshape(*maps.shape[:2], SIDE, SIDE)


@one_thread()
def principal_channels(X: Array, most: int, *, seed: int = 0) -> Channels:
    """Return at most `most` principal directions of the channels of X (n, C, H, W), scaled to a mean variance of 1.

    Channels are standardised first, over positions drawn from all images; the directions are the eigenvectors of
    their covariance. With C <= most it is an exact rotation of the standardised channels.
    """
    from scipy.linalg import eigh

    drawn = _positions(X, seed)
    mean, std = drawn.mean(axis=0, dtype=np.float64), drawn.std(axis=0, dtype=np.float64)
    scale = np.where(std > 1e-6 * (1 + np.abs(mean)), 1 / np.where(std > 0, std, 1), 0)
    standard = ((drawn - mean) * scale).astype(np.float32)
    covariance = (standard.T @ standard).astype(np.float64) / len(drawn)
    last = X.shape[1] - 1
    variance, directions = eigh(covariance, subset_by_index=[max(0, last + 1 - most), last])
    power = float(np.sqrt(max(variance.mean(), 1e-12)))
    basis = scale[:, None] * directions[:, ::-1] / power
    return Channels(mean.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32))


def _positions(X: Array, seed: int) -> NDArray[np.float32]:
    """Return the channels at positions drawn evenly from the images, (at most _POSITIONS or so, C)."""
    rng = np.random.default_rng(seed)
    n, channels = X.shape[:2]
    positions = int(np.prod(X.shape[2:]))
    rows = np.sort(rng.permutation(n)[:_POSITIONS])
    each = min(positions, max(1, _POSITIONS // len(rows)))
    pieces = []
    for i in range(0, len(rows), ROWS):
        block = X[rows[i : i + ROWS]].reshape(-1, channels, positions)
        at = rng.permuted(np.tile(np.arange(positions), (len(block), 1)), axis=1)[:, :each]
        pieces.append(np.take_along_axis(block, at[:, None], axis=2).astype(np.float32).swapaxes(1, 2))
    return np.concatenate(pieces).reshape(-1, channels)


class MapHead(Head):
    """Logits per position, pooled by log-mean-exp over positions (Pinheiro & Collobert 2015, arXiv:1411.6228).

    A plain mean over positions would be a linear head on average-pooled features; log-mean-exp lets the strongest
    positions speak louder. Large maps vote in 7 x 7 parts. The convolution is learned in the principal channels, by
    Adam with weight decay.
    """

    channels, rate, decay, sharpness = 128, 4e-3, 1e-2, 1.0

    saved: ClassVar = {"weights": "_weights", "bias": "_bias"}
    _weights: Array  # (K, C), in the units of X
    _bias: Array  # (K,)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train on X (n, C, H, W) and keep the weights of the best epoch."""
        self.classes_ = np.arange(int(y.max()) + 1)
        found = principal_channels(X, self.channels, seed=self.seed)
        Z = found.positions(X)
        weights, bias = self.on_device(Z.size, lambda device: self._trained(Z, y, groups, device))
        self._weights = (weights @ found.basis.T).astype(np.float64)
        self._bias = bias - self._weights @ found.mean
        return self

    def _trained(
        self, positions: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None, device: str
    ) -> tuple[Array, Array]:
        """Return weights (K, c) and bias (K,), learned from the channels at positions (n, c, P)."""
        import torch

        Z, labels, k = tensor_on(device, positions), tensor_on(device, y), len(self.classes_)
        weights = torch.zeros(k, Z.shape[1], device=Z.device, requires_grad=True)
        bias = torch.zeros(k, device=Z.device, requires_grad=True)
        decayed = [{"params": [weights], "weight_decay": self.decay}, {"params": [bias], "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(decayed, lr=self.rate)

        def loss(at: NDArray[np.intp]) -> torch.Tensor:
            votes = weights @ Z[at] + bias[:, None]
            pooled = torch.logsumexp(votes * self.sharpness, 2) / self.sharpness
            return torch.nn.functional.cross_entropy(pooled, labels[at])

        self.chosen_ = {"epochs": train_until_stale(optimiser, loss, [weights, bias], y, groups, seed=self.seed)}
        return weights.detach().cpu().numpy(), bias.detach().cpu().numpy()

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


_NAMES = ("look_tanh", "look_gate", "look", "weights", "bias")


class Attention(Head):
    """Gated attention pooling (Ilse, Tomczak & Welling 2018, arXiv:1802.04712) in the principal channels.

    A position with channels z weighs softmax(u' (tanh(V z) * sigmoid(U z))) over the positions; a linear layer reads
    the weighted mean. Large maps are seen in 7 x 7 parts. Adam with weight decay, early stopping on a grouped fifth.
    """

    channels, hidden, rate, decay = 64, 32, 2e-3, 1e-2

    _channels: Channels
    _layers: dict[str, Array]

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train on X (n, C, H, W) and keep the weights of the best epoch."""
        self.classes_ = np.arange(int(y.max()) + 1)
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        Z = self._channels.positions(X)
        layers = self.on_device(Z.size, lambda device: self._trained(Z, y, groups, device))
        self._layers = dict(zip(_NAMES, layers, strict=True))
        return self

    def _trained(
        self, positions: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None, device: str
    ) -> list[Array]:
        """Return the layers, in the order of their names, learned from the channels at positions (n, c, P)."""
        import torch

        Z, labels = tensor_on(device, positions), tensor_on(device, y)
        layers = [tensor_on(device, a).requires_grad_() for a in self._drawn(Z.shape[1])]
        optimiser = torch.optim.AdamW(layers, lr=self.rate, weight_decay=self.decay)

        def loss(at: NDArray[np.intp]) -> torch.Tensor:
            maps = Z[at]
            tanh, gate, look, weights, bias = layers
            seen = torch.tanh(tanh @ maps) * torch.sigmoid(gate @ maps)
            share = torch.softmax((look[:, None] * seen).sum(1), 1)
            pooled = (maps @ share[..., None])[..., 0]
            return torch.nn.functional.cross_entropy(pooled @ weights.T + bias, labels[at])

        self.chosen_ = {"epochs": train_until_stale(optimiser, loss, layers, y, groups, seed=self.seed)}
        return [a.detach().cpu().numpy() for a in layers]

    def _drawn(self, channels: int) -> list[NDArray[np.float32]]:
        """Return the first weights: attention drawn small, so that it starts near the plain mean, the rest zero."""
        rng = np.random.default_rng(self.seed)
        small = rng.normal(0, channels**-0.5, (2, self.hidden, channels)).astype(np.float32)
        look = rng.normal(0, self.hidden**-0.5, self.hidden).astype(np.float32)
        k = len(self.classes_)
        return [small[0], small[1], look, np.zeros((k, channels), np.float32), np.zeros(k, np.float32)]

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


class Spatial(Head):
    """Means of the principal channels over 1x1, 2x2 and 3x3 cells (Lazebnik, Schmid & Ponce 2006), then `logistic`.

    Which side of a chest film is opaque, and how high, is lost in a mean over the whole image.
    """

    channels, cells = 128, (1, 2, 3)

    _channels: Channels

    def __init__(self, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(seed=seed, device=device)
        self._linear = Logistic(seed=seed, device=device)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Learn the channels from X (n, C, H, W), then the linear head on the pyramid."""
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        self._linear.fit(self._pyramid(X), y, groups)
        self._take_over()
        return self

    def _take_over(self) -> None:
        """Say of itself what the linear head says."""
        linear = self._linear
        self.classes_, self.chosen_, self.device_ = linear.classes_, linear.chosen_, linear.device_

    def fit_folds(
        self, X: Array, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return probabilities without each fold (F, n, K), as `Logistic.fit_folds`.

        The channels are learned once, from all rows: labels have no part in them.
        """
        self._channels = principal_channels(X, self.channels, seed=self.seed)
        held = self._linear.fit_folds(self._pyramid(X), y, folds, progress)
        if held is not None:
            self._take_over()
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
