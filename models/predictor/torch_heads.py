"""The tables MODULES and CALIBRATORS: heads and calibrations as torch modules, for export.

A head's module takes what the head sees, X (B, d) or maps (B, C, H, W) float32, and gives logits or log probabilities
(B, K) float64, whose softmax are the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, linear

from models.heads import HEADS
from models.heads.knn import Neighbours
from models.heads.map_heads import SIDE, MapHead, Spatial
from models.metrics import Calibration
from models.predictor.trees import Trees

LEAST = 1e-15  # a probability below counts as this much, as in `models.metrics.calibration`
_TINY = 1e-300


def head_module(name: str, head: Any) -> nn.Module:
    """Return the module of a fitted head; `name` is a row of HEADS."""
    return MODULES[HEADS[name].form](head).eval()


def calibrator(calibration: Calibration | None) -> nn.Module:
    """Return the module of a calibration, (B, K) -> (B, K) float64."""
    return nn.Identity() if calibration is None else CALIBRATORS[type(calibration).__name__](calibration)


class _Module(nn.Module):
    """Arrays under names; integers and float64 stay what they are where they decide or add up."""

    def __init__(self, **arrays: Any) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))


def _single(array: Any) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)


def _double(array: Any) -> NDArray[np.float64]:
    return np.asarray(array, dtype=np.float64)


class _Linear(_Module):
    """X @ coef' + intercept; one logit of two classes stands against zero."""

    coef: Tensor
    intercept: Tensor

    def __init__(self, coef: Any, intercept: Any) -> None:
        super().__init__(coef=_single(coef), intercept=_double(intercept))

    def forward(self, X: Tensor) -> Tensor:
        score = linear(X, self.coef).double() + self.intercept
        return torch.cat([torch.zeros_like(score), score], 1) if len(self.coef) == 1 else score


class _Perceptron(nn.Module):
    """One hidden layer."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.hidden, self.out = _Linear(layers[0].T, layers[1]), _Linear(layers[2].T, layers[3])

    def forward(self, X: Tensor) -> Tensor:
        score = linear(X, self.hidden.coef) + self.hidden.intercept.float()
        out: Tensor = self.out(torch.relu(score))
        return out


class _Voting(_Module):
    """Votes of positions under a mean of exponentials."""

    weights: Tensor
    bias: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        votes = torch.einsum("kc,bchw->bkhw", self.weights, maps) + self.bias[:, None, None]
        flat = _coarse(votes).flatten(2).double() * MapHead.sharpness
        return (torch.logsumexp(flat, 2) - float(np.log(flat.shape[2]))) / MapHead.sharpness


def _coarse(maps: Tensor) -> Tensor:
    """Return maps averaged to SIDE x SIDE positions; those that are no larger as they are."""
    return maps if min(maps.shape[2:]) <= SIDE else adaptive_avg_pool2d(maps, SIDE)


class _Projected(_Module):
    """Maps in their principal channels."""

    basis: Tensor
    shift: Tensor

    def __init__(self, mean: Any, basis: Any) -> None:
        super().__init__(basis=_single(basis), shift=_single(mean @ basis))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.einsum("cd,bchw->bdhw", self.basis, maps) - self.shift[:, None, None]


class _Attending(_Module):
    """Gated attention over positions."""

    look_tanh: Tensor
    look_gate: Tensor
    look: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        named = {name: _single(arrays[name]) for name in ("look_tanh", "look_gate", "look", "weights")}
        super().__init__(**named, bias=_double(arrays["bias"]))
        self.channels = _Projected(arrays["mean"], arrays["basis"])

    def forward(self, maps: Tensor) -> Tensor:
        Z = _coarse(self.channels(maps)).flatten(2)
        seen = torch.tanh(self.look_tanh @ Z) * torch.sigmoid(self.look_gate @ Z)
        share = torch.softmax((self.look[:, None] * seen).sum(1), 1)
        pooled = (Z * share[:, None]).sum(2)
        return linear(pooled, self.weights).double() + self.bias


class _Pyramid(nn.Module):
    """Means of the principal channels over cells, then a linear layer."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels = _Projected(arrays["mean"], arrays["basis"])
        self.linear = _Linear(arrays["coef"], arrays["intercept"])

    def forward(self, maps: Tensor) -> Tensor:
        Z = self.channels(maps)
        out: Tensor = self.linear(torch.cat([adaptive_avg_pool2d(Z, cells).flatten(1) for cells in Spatial.cells], 1))
        return out


class _Neighbours(_Module):
    """The votes of the k most similar rows."""

    rows: Tensor
    onehot: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, head: Neighbours) -> None:
        _, arrays = head.state()
        onehot = np.eye(len(head.classes_))[arrays["y"]]
        super().__init__(**{n: _single(arrays[n]) for n in ("rows", "mean", "std")}, onehot=_double(onehot))
        self.k = int(head.chosen_["k"])

    def forward(self, X: Tensor) -> Tensor:
        Z = (X - self.mean) / self.std
        unit = Z / Z.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        value, near = torch.topk(unit @ self.rows.T, self.k, dim=1)
        votes = torch.exp((value - value[:, :1]).double() / Neighbours.temperature)
        proba = (votes[:, :, None] * self.onehot[near]).sum(1) + 1 / self.onehot.shape[1]
        return torch.log(proba)


class _Walk(_Module):
    """Trees, all at once; a threshold in float32 below the one in float64 parts the same float32 features."""

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    roots: Tensor

    def __init__(self, trees: Trees) -> None:
        threshold = trees.threshold.astype(np.float32)
        above = threshold.astype(np.float64) > trees.threshold
        threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
        whole = {name: getattr(trees, name) for name in ("feature", "left", "right", "value", "roots")}
        super().__init__(**whole, threshold=threshold)
        self.depth, self.columns, self.sigmoid = trees.depth, trees.columns, trees.sigmoid

    def forward(self, X: Tensor) -> Tensor:
        at = self.roots + torch.zeros_like(X[:, :1], dtype=torch.int64)
        for _ in range(self.depth):
            seen = torch.gather(X, 1, self.feature[at])
            at = torch.where(seen <= self.threshold[at], self.left[at], self.right[at])
        raw = self.value[at].reshape(at.shape[0], -1, self.columns).sum(1)
        return raw if self.columns > 1 else torch.cat([torch.zeros_like(raw), self.sigmoid * raw], 1)


class _Vote(_Module):
    """A weighted sum of log probabilities (B, M, K) and an intercept for each class."""

    weights: Tensor
    intercepts: Tensor

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        super().__init__(weights=_double(arrays["weights"]), intercepts=_double(arrays["intercepts"]))

    def forward(self, proba: Tensor) -> Tensor:
        return (proba.clamp_min(1e-6).log() * self.weights[:, None]).sum(1) + self.intercepts


class _Scaled(_Module):
    """softmax(slope * log proba + intercepts)."""

    intercepts: Tensor

    def __init__(self, slope: float, intercepts: Any) -> None:
        super().__init__(intercepts=_double(intercepts))
        self.slope = slope

    def forward(self, proba: Tensor) -> Tensor:
        return torch.softmax(self.slope * proba.clamp(LEAST, 1).log() + self.intercepts, 1)


class _Rising(nn.Module):
    """Rising functions, straight between knots: a sum of ramps. Then made to sum to 1."""

    def __init__(self, knots: Sequence[Any], levels: Sequence[Any]) -> None:
        super().__init__()
        self.ramps = nn.ModuleList(_Ramps(k, v) for k, v in zip(knots, levels, strict=True))

    def forward(self, proba: Tensor) -> Tensor:
        if len(self.ramps) == 1:
            positive = self.ramps[0](proba[:, 1:2])
            return torch.cat([1 - positive, positive], 1)
        mapped = torch.cat([ramps(proba[:, k : k + 1]) for k, ramps in enumerate(self.ramps)], 1)
        total = mapped.sum(1, keepdim=True)
        return torch.where(total > 0, mapped / total.clamp_min(_TINY), proba)


class _Ramps(_Module):
    start: Tensor
    width: Tensor
    slope: Tensor
    first: Tensor

    def __init__(self, knots: Any, levels: Any) -> None:
        k, v = _double(knots), _double(levels)
        width = np.append(np.diff(k), 1.0)
        slope = np.append(np.diff(v), 0.0) / np.where(width > 0, width, 1.0)
        super().__init__(start=k, width=width, slope=slope, first=v[:1])

    def forward(self, score: Tensor) -> Tensor:
        return self.first + (torch.clamp(score - self.start, min=0).minimum(self.width) * self.slope).sum(1, True)


def _arrays(head: Any) -> Mapping[str, Any]:
    arrays: Mapping[str, Any] = head.state()[1]
    return arrays


MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "linear": lambda head: _Linear(head.coef_, head.intercept_),
    "neighbours": _Neighbours,
    "perceptron": lambda head: _Perceptron([_arrays(head)[f"layer{i}"] for i in range(4)]),
    "trees": _Walk,
    "votes": lambda head: _Voting(**{name: _single(array) for name, array in _arrays(head).items()}),
    "attention": lambda head: _Attending(_arrays(head)),
    "pyramid": lambda head: _Pyramid(_arrays(head)),
    "stack": lambda head: _Vote(_arrays(head)),
}
CALIBRATORS: dict[str, Callable[[Any], nn.Module]] = {
    "Temperature": lambda c: _Scaled(1 / c.temperature, [0.0]),
    "Platt": lambda c: _Scaled(c.slope, c.intercepts),
    "Isotonic": lambda c: _Rising(c.knots, c.levels),
}
