"""Coverage of the intervals of cross-validation, and what it says of noise; tables of `benchmarks.coverage`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.views import View
from models.heads import HEADS, make_head
from models.heads.head import Head, silent
from models.heads.stacking import vote_out_of_fold
from models.metrics import METRICS, Interval, calibration_line, net_benefit, rates, score
from models.validation.cross_validation import PROTOCOLS, Protocol, fit, without_pairs
from models.validation.predictions import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TREATED = (0.2, 0.5)  # thresholds of the decision curve


def intervals(y: Ints, proba: Floats, groups: Ints, *, folds: Ints | None = None, **draws: int) -> dict[str, Interval]:
    """Return the intervals of the scores of one model, of its calibration, its decisions and rates at fixed rates."""
    found = score(y, proba, groups, folds=folds, **draws)
    del found["ece"]  # it has none
    if proba.shape[1] > 2:
        return found
    line = calibration_line(y, proba[:, 1], groups, folds=folds)
    found |= {"slope": line.slope, "intercept": line.intercept}
    found |= {f"rates: {name}": row for name, row in rates(y, proba[:, 1], groups, folds=folds)._asdict().items()}
    benefit = net_benefit(y, proba[:, 1], TREATED, groups, folds=folds)
    bands = zip(benefit.model.tolist(), benefit.low.tolist(), benefit.high.tolist(), strict=True)
    return found | {f"net benefit at {t}": Interval(*row) for t, row in zip(TREATED, bands, strict=True)}


def holds(interval: Interval, value: float) -> float:
    """Return 1 where an interval holds a value, else 0, and NaN where it has no bounds."""
    return math.nan if math.isnan(interval.low) else float(interval.low <= value <= interval.high)


def summed_up(held: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the share of the intervals that hold the truth, by name, and the share that is missing, where any is."""
    rows = {}
    for name, row in held.items():
        defined = [value for value in row if not math.isnan(value)]
        rows[name] = sum(defined) / len(defined) if defined else math.nan
        if len(defined) < len(row):
            rows[f"{name}, no interval"] = 1 - len(defined) / len(row)
    return rows


class Task(NamedTuple):
    """What heads are cross-validated on: normal features, a few of which differ between the classes."""

    patients: int
    images: int  # of each patient
    shift: float  # of each telling feature, in standard deviations of an image within its patient
    between: float  # variance between patients
    telling: int = 6
    features: int = 40


TASKS: dict[str, Task] = {
    "24 patients": Task(24, 10, 0.5, 1.0),
    "24 patients, noise": Task(24, 10, 0.0, 1.0),
    "80 patients": Task(80, 4, 0.4, 1.0),
    "80 images": Task(80, 1, 0.45, 0.0),
}
CROSS_VALIDATED = dict.fromkeys(TASKS, ("knn",)) | {"24 patients": ("knn", "lda", "ridge")}


def view(task: Task, random: np.random.Generator, times: int = 1) -> View:
    """Return the features of `times` the task's patients, half of them of either class."""
    patients = times * task.patients
    groups = np.repeat(np.arange(patients), task.images)
    y = random.permutation(np.arange(patients) % 2)[groups]
    X = random.normal(size=(patients, task.features))[groups] * math.sqrt(task.between)
    X += random.normal(size=X.shape)
    X[:, : task.telling] += task.shift * (2 * y[:, None] - 1)
    names = np.char.add("i", np.char.zfill(np.arange(len(y)).astype(str), 6))
    return View(X.astype(np.float32), y, names, groups.astype(str), np.full(len(y), "train"))


class _Judged:
    """A head that is also judged on new patients each time that it predicts."""

    def __init__(self, head: Head, new: View, judged: list[Floats]) -> None:
        self.head, self.new, self.judged = head, new, judged

    def fit(self, X: NDArray[np.float32], y: Ints, groups: NDArray[np.str_] | None = None) -> _Judged:
        self.head.fit(X, y, groups)
        return self

    def predict_proba(self, X: NDArray[np.float32]) -> Floats:
        self.judged.append(self.head.predict_proba(self.new.X))
        return self.head.predict_proba(X)


def coverage_of_cross_validation(
    task: Task, head: str, protocol: Protocol, samples: int, n_bootstrap: int, *, times: int = 20, seed: int = 0
) -> dict[str, float]:
    """Return the share of cross-validations whose interval holds the truth on new patients, by name."""
    random = np.random.default_rng(seed)
    held: dict[str, list[float]] = {}
    for number in range(samples):
        drawn, new = view(task, random), view(task._replace(images=min(task.images, 2)), random, times)
        judged: list[Floats] = []
        make: Callable[[], Head] = lambda: _Judged(make_head(head, seed=0), new, judged)  # type: ignore[return-value]  # noqa: B023, E731
        found = fit(make, [drawn], protocol, seed=number).predictions
        of = np.repeat(np.arange(len(judged)), len(new.y))
        y, groups = (np.tile(column, len(judged)) for column in (new.y, new.groups))
        known = intervals(y, np.concatenate(judged), groups, folds=of, n_bootstrap=0, seed=0)
        rows = intervals(found.y, found.proba, found.groups, folds=found.fold, n_bootstrap=n_bootstrap, seed=number)
        for name, interval in rows.items():
            held.setdefault(name, []).append(holds(interval, known[name].value))
    return summed_up(held)


def orthogonal_labels() -> Ints:
    """Return 23 labellings of 24 patients, half of each positive, orthogonal to each other, (23, 24).

    Paley's Hadamard matrix of order 24 (1933). Where features are noise the areas of such labellings vary against each
    other, and their mean has a tenth of the variance that the mean of 23 independent ones has.
    """
    q = 23
    residues = {i * i % q for i in range(1, q)}
    character = np.array([0] + [1 if i in residues else -1 for i in range(1, q)])
    skew = np.block(
        [[np.zeros((1, 1)), np.ones((1, q))], [-np.ones((q, 1)), character[(np.arange(q)[:, None] - np.arange(q)) % q]]]
    )
    matrix = np.eye(q + 1) + skew
    return ((matrix * matrix[0])[1:] > 0).astype(np.int64)


STACKED = ("logistic", "lda", "knn")


def noise(head: str, draws: int, *, seed: int = 0) -> list[float]:
    """Return the cross-validated area of a head in each of `draws` views of noise, each the mean of 23 labellings."""
    means = []
    for number in range(draws):
        random = np.random.default_rng([seed, number])
        drawn, order = view(TASKS["24 patients, noise"], random), random.permutation(24)
        if HEADS[head].input == "maps":
            drawn = drawn._replace(X=random.normal(size=(24, 4, 3, 3))[np.arange(240) // 10].astype(np.float32))
            drawn = drawn._replace(X=drawn.X + random.normal(size=(240, 4, 3, 3)).astype(np.float32))
        areas = []
        for row, labels in enumerate(orthogonal_labels()):
            labelled = drawn._replace(y=labels[order][np.arange(240) // 10])
            found = _cross_validated(head, labelled, seed=1000 * number + row)
            areas.append(METRICS["roc_auc"](found.y, found.proba, folds=found.fold))
        means.append(float(np.mean(areas)))
    return means


def _cross_validated(head: str, drawn: View, *, seed: int) -> Predictions:
    """Return the predictions of a head under `cv`, of a nested stack from those of three other heads."""
    protocol = PROTOCOLS["cv"]
    if head != "stack":
        return fit(partial(make_head, head, seed=seed), [drawn], protocol, seed=seed).predictions
    bases = {name: _cross_validated(name, drawn, seed=seed) for name in STACKED}
    first = bases[STACKED[0]]
    proba = np.zeros_like(first.proba)
    for rows in np.split(np.arange(len(first.y)), protocol.repeats):
        folds = first.fold[rows]
        pairs = [without_pairs(partial(make_head, name, seed=seed), drawn, folds, silent) for name in STACKED]
        seen = np.stack([base.proba[rows] for base in bases.values()], axis=1)
        nested = [None if found is None else found.swapaxes(0, 1) for found in pairs]
        proba[rows] = vote_out_of_fold(seen, nested, first.y[rows], folds - folds.min())
    return first._replace(proba=proba)


def of_cross_validation(name: str, samples: int, n_bootstrap: int, seed: int) -> dict[str, float]:
    """Return the coverage of a column "task; head; protocol"."""
    task, head, protocol = name.split("; ")
    return coverage_of_cross_validation(TASKS[task], head, PROTOCOLS[protocol], samples, n_bootstrap, seed=seed)


def of_noise(name: str, samples: int, n_bootstrap: int, seed: int) -> dict[str, float]:
    """Return the mean area of a head, and the mean square, over `samples` views."""
    means = noise(name, samples, seed=seed)
    return {"area": float(np.mean(means)), "squared": float(np.mean(np.square(means)))}
