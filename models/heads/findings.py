"""Heads for several findings per image: labels (n, L) of 0, 1 and -1, probabilities (n, L) of each finding.

A missing label (-1) leaves its row out of that finding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations, pairwise
from typing import Any, ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray

from features.cache.reader import subset
from features.errors import FirnError
from features.progress import say
from models.folds import grouped_folds
from models.heads.head import FEWEST_FOLDS, Array, Head, log_loss, silent, standardisation, tensor_on, train_until_stale
from models.heads.linear import Logistic, at_strength
from models.logistic_path import Sweep, out_of_fold, predicted, strengths, sweep_findings

_BLOCK = 4096  # rows read at once from features on the disk
_ENOUGH = 1e-4  # gap of models that only take part in a choice


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-z)) without overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1, small) / (1 + small))


def finding_loss(y: NDArray[np.int64], proba: NDArray[np.float64]) -> float:
    """Return the mean log loss of probabilities (n,) of one finding over the rows that have its label y (n,)."""
    known = y >= 0
    return log_loss(y[known], np.stack([1 - proba[known], proba[known]], axis=1))


class Findings(Head):
    """The base class of heads for several findings."""

    several: ClassVar = True

    def each(self) -> list[Any]:
        """Return a head of two classes for each finding. FirnError for a head that findings share."""
        raise FirnError(f"{type(self).__name__} is one model of all findings")


@final
class PerFinding(Findings):
    """A head of its own for each finding, on the rows that have its label."""

    heads_: list[Head]

    def __init__(self, make: Callable[..., Head], *, seed: int = 0, device: str = "cpu") -> None:
        """Store the class of the heads, the seed and the device."""
        super().__init__(seed=seed, device=device)
        self._make = make

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Fit one head after the other."""
        self.heads_ = []
        for labels in y.T:
            own = labels >= 0
            head = self._make(seed=self.seed, device=self.device)
            self.heads_.append(head.fit(subset(X, own), labels[own], None if groups is None else groups[own]))
        self.classes_, self.device_ = np.arange(y.shape[1]), self.heads_[-1].device_
        self.chosen_ = {str(k): head.chosen_ for k, head in enumerate(self.heads_)}
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities, (n, L)."""
        return np.stack([head.predict_proba(X)[:, 1] for head in self.heads_], axis=1)

    def each(self) -> list[Any]:
        """Return the heads."""
        return self.heads_

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what each head learned."""
        states = [head.state() for head in self.heads_]
        pairs = zip(states, self.heads_, strict=True)
        values = {"heads": [{"values": own, "chosen": head.chosen_} for (own, _), head in pairs]}
        return values, {f"{k}.{name}": a for k, (_, arrays) in enumerate(states) for name, a in arrays.items()}

    def restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Take over what each head learned."""
        self.heads_ = []
        for k, own in enumerate(values["heads"]):
            mine = {name.removeprefix(f"{k}."): a for name, a in arrays.items() if name.startswith(f"{k}.")}
            head = self._make(seed=self.seed).restore(own["values"], mine)
            head.classes_, head.chosen_ = np.arange(2), own["chosen"]
            self.heads_.append(head)
        return self


def per_finding(make: Callable[..., Head]) -> Callable[..., Head]:
    """Return what makes a head of such heads, one for each finding."""
    return partial(PerFinding, make)


@final
class LogisticFindings(Findings):
    """L2-regularised logistic regression of each finding, all of them, with their strengths and folds, in one sweep.

    The strength of a finding is the one of its least held-out log loss.
    """

    steps = 13  # strengths tried, two a decade
    saved: ClassVar = {"coef": "coef_", "intercept": "intercept_"}
    coef_: NDArray[np.float64]  # (L, d)
    intercept_: NDArray[np.float64]  # (L,)

    def fit(self, X: Any, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Solve all strengths on all grouped folds at once, choose, and solve the chosen ones on all rows."""
        folds = grouped_folds(y, groups, 5, seed=self.seed)
        masks = np.stack([folds != f for f in range(folds.max() + 1)])
        solved = self._solved(X, y, strengths(self.steps), masks)
        losses = [
            [finding_loss(labels, proba[:, 1]) for proba in out_of_fold(X, found, masks)]
            for labels, found in zip(y.T, solved, strict=True)
        ]
        return self._settled(X, y, np.array(losses))

    def _settled(self, X: Any, y: NDArray[np.int64], losses: NDArray[np.float64]) -> Self:
        """Solve on all rows at the strength of least held-out loss (L, S) of each finding."""
        grid, best = strengths(self.steps), losses.argmin(axis=1)
        whole, used = np.ones((1, len(y)), dtype=bool), np.unique(best)
        solved = self._solved(X, y, grid[used], whole)
        places = np.searchsorted(used, best).tolist()
        self.coef_ = np.stack([found.coef[0, at, 0] for found, at in zip(solved, places, strict=True)])
        self.intercept_ = np.array([found.intercept[0, at, 0] for found, at in zip(solved, places, strict=True)])
        self.classes_ = np.arange(y.shape[1])
        self.chosen_ |= {"C": grid[best].tolist(), "held_out_log_loss": losses.min(axis=1).tolist()}
        return self

    def _solved(
        self, X: Any, y: NDArray[np.int64], grid: Any, masks: NDArray[np.bool_], tol: float = 1e-6
    ) -> list[Sweep]:
        """Return the solutions of each finding; those that are not certified to the tolerance are counted, and said."""
        settings: Any = {"strengths": grid, "folds": masks, "tol": tol}
        found = self.on_device(int(np.prod(X.shape)), lambda device: sweep_findings(X, y, **settings, device=device))
        if missed := sum(int((~one.converged).sum()) for one in found):
            self.chosen_["not_certified"] = self.chosen_.get("not_certified", 0) + missed
            worst = max(float(one.gap.max()) for one in found)
            say(f"logistic: {missed} of {len(found) * found[0].gap.size} solutions are not certified, gap {worst:.0e}")
        return found

    def fit_folds(
        self, X: Any, y: NDArray[np.int64], folds: NDArray[np.int64], progress: Callable[[int, int], None] = silent
    ) -> NDArray[np.float64] | None:
        """Fit on all rows and return probabilities without each fold (F, n, L), as `Logistic.fit_folds`."""
        names = np.unique(folds)
        pairs = list(combinations(range(len(names)), 2))
        both = np.stack([(folds != names[i]) & (folds != names[j]) for i, j in pairs])
        if len(names) < FEWEST_FOLDS or not all((y[mask] == k).any(axis=0).all() for mask in both for k in (0, 1)):
            return None
        grid = strengths(self.steps)
        inner = self._solved(X, y, grid, both, tol=_ENOUGH)
        progress(1, 3)
        losses = np.zeros((y.shape[1], len(names), self.steps))
        for at, (i, j) in enumerate(pairs):
            for judge, judged in ((i, j), (j, i)):
                losses[:, judge] += _summed(X, y, np.flatnonzero(folds == names[judged]), inner, at)[0]
        outer = self._solved(X, y, grid, folds != names[:, None])
        progress(2, 3)
        held, total, best = np.empty((len(names), *y.shape)), np.zeros((y.shape[1], self.steps)), losses.argmin(axis=2)
        for i, name in enumerate(names):
            rows = np.flatnonzero(folds == name)
            sums, proba = _summed(X, y, rows, outer, i)
            held[i, rows] = np.stack([p[b] for p, b in zip(proba, best[:, i], strict=True)], axis=1)
            total += sums
        for at, (i, j) in enumerate(pairs):
            for judge, judged in ((i, j), (j, i)):
                rows = np.flatnonzero(folds == names[judged])
                chosen = [at_strength(found, b) for found, b in zip(inner, best[:, judge].tolist(), strict=True)]
                held[judge, rows] = np.stack([predicted(subset(X, rows), own, at)[0, :, 1] for own in chosen], axis=1)
        self._settled(X, y, total / (y >= 0).sum(axis=0)[:, None])
        progress(3, 3)
        return held

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities, (n, L); rows on the disk are read in blocks."""
        weights = self.coef_.T.astype(np.float32)
        step = max(1, len(X)) if isinstance(X, np.ndarray) else _BLOCK
        parts = [X[i : i + step] @ weights for i in range(0, len(X), step)]
        scores = np.concatenate(parts or [np.empty((0, len(self.coef_)))])
        return sigmoid(scores.astype(np.float64) + self.intercept_)

    def each(self) -> list[Any]:
        """Return a head of two classes for each finding."""
        heads = [Logistic(seed=self.seed) for _ in self.coef_]
        for k, head in enumerate(heads):
            head.coef_, head.intercept_ = self.coef_[k : k + 1], self.intercept_[k : k + 1]
        return heads


def _summed(
    X: Any, y: NDArray[np.int64], rows: NDArray[np.intp], models: list[Sweep], fold: int
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return the summed log loss (L, S) of some rows under the models of a fold, and each finding's (S, m)."""
    proba = [predicted(subset(X, rows), found, fold)[..., 1] for found in models]
    known = (y[rows] >= 0).sum(axis=0).tolist()
    sums = [
        [finding_loss(labels, p) * n if n else 0.0 for p in own]
        for labels, own, n in zip(y[rows].T, proba, known, strict=True)
    ]
    return np.array(sums), proba


@final
class PerceptronFindings(Findings):
    """128 ReLU units shared by all findings, binary cross-entropy over the labels there are, by Adam.

    Stopped when the loss of a grouped fifth stops falling.
    """

    units, rate, decay = 128, 1e-3, 1e-3
    saved: ClassVar = {"layer0": "w0", "layer1": "b0", "layer2": "w1", "layer3": "b1"}
    w0: Array  # (d, units), in the units of X
    b0: Array  # (units,)
    w1: Array  # (units, L)
    b1: Array  # (L,)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        """Train epoch by epoch and keep the weights of the best one."""
        mean, std = standardisation(X)
        Z = ((X - mean) / std).astype(np.float32)
        w0, b0, self.w1, self.b1 = self.on_device(Z.size, lambda device: self._trained(Z, y, groups, device))
        self.w0 = w0 / std[:, None]
        self.b0 = b0 - mean @ self.w0
        self.classes_ = np.arange(y.shape[1])
        return self

    def _trained(
        self, features: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None, device: str
    ) -> list[Array]:
        """Return both layers' weights and biases, learned from standardised features (n, d)."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        Z, target = tensor_on(device, features), tensor_on(device, y.astype(np.float32))
        random = torch.Generator().manual_seed(self.seed)
        sizes = (Z.shape[1], self.units, y.shape[1])
        layers = [torch.randn(a, b, generator=random) * (2 / a) ** 0.5 for a, b in pairwise(sizes)]
        drawn = [layers[0], torch.zeros(self.units), layers[1], torch.zeros(y.shape[1])]
        parameters = [p.to(Z.device) for p in drawn]
        optimiser = torch.optim.AdamW([p.requires_grad_() for p in parameters], self.rate, weight_decay=self.decay)

        def loss(rows: NDArray[np.intp]) -> torch.Tensor:
            at = torch.from_numpy(rows)
            hidden = torch.relu(torch.addmm(parameters[1], Z[at], parameters[0]))
            logits, known = torch.addmm(parameters[3], hidden, parameters[2]), target[at] >= 0
            summed = binary_cross_entropy_with_logits(logits[known], target[at][known], reduction="sum")
            return summed / max(1, int(known.sum()))

        self.chosen_ = {"epochs": train_until_stale(optimiser, loss, parameters, y, groups, seed=self.seed)}
        return [p.detach().cpu().numpy() for p in parameters]

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities, (n, L)."""
        hidden = np.maximum(X @ self.w0 + self.b0, 0)
        return sigmoid(np.asarray(hidden @ self.w1 + self.b1, dtype=np.float64))
