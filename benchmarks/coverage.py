"""How often do the intervals hold the truth, and how often do the tests cry wolf?

Run: python -m benchmarks.coverage [--samples 1000] [--bootstrap 500] [--parts NAME ...] [--designs NAME ...]

Each design draws test sets from a known world. The truth of a metric is its value in a sample of that world so large
that its own error does not matter; of a cross-validation, its mean over the models of all folds on new patients.
Nominal: 95 % coverage, 5 % false alarms, 5 % of comparisons in which any of M equal models is called lower than the
best, chosen on other images (split) or on the same (cv).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.views import View
from models.folds import grouped_folds
from models.heads import make_head
from models.heads.head import Head
from models.metrics import METRICS, Interval, bootstrap_test, compare_with, delong, delong_test, score
from models.validation.cross_validation import PROTOCOLS, fit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class World(NamedTuple):
    """Where test sets come from: a normal score with a share of its variance between the patients."""

    positives: int  # patients of class 1; of a mixed world, all patients
    negatives: int  # patients of class 0
    images: int  # most images a patient; 1: no clusters
    shift: float  # distance of the classes in standard deviations
    between: float = 0.0  # share of the variance between patients
    mixed: bool = False  # a patient has images of both classes
    confidence: float = 1.5  # the log odds given out are this times the right ones


DESIGNS: dict[str, World] = {
    "single, AUC 0.86": World(60, 60, 1, 1.5),
    "single, AUC 0.98": World(60, 60, 1, 3.0),
    "single, small": World(20, 20, 1, 1.5),
    "single, rare positives": World(40, 400, 1, 1.5),
    "single, near 1": World(100, 100, 1, 4.0),
    "patients": World(50, 50, 6, 1.5, 0.6),
    "patients, near 1": World(50, 50, 6, 3.0, 0.6),
    "patients, mixed": World(80, 0, 6, 1.5, 0.6, mixed=True),
    "patients, few": World(15, 15, 6, 1.5, 0.6),
    "patients, 6 + 30": World(6, 30, 6, 1.5, 0.6),
    "rare positives, 8": World(8, 300, 1, 1.5),
    "patients, calibrated": World(50, 50, 6, 1.5, 0.6, confidence=1.0),
}
SHOWN = ("roc_auc", "pr_auc", "accuracy", "sensitivity", "f1", "brier", "log_loss")


def draw(world: World, random: np.random.Generator, times: int = 1) -> tuple[Ints, Floats, Ints]:
    """Return y (n,), proba (n, 2) and groups (n,) of a test set with `times` the world's patients."""
    patients = times * (world.positives + world.negatives)
    groups = np.repeat(np.arange(patients), random.integers(1, world.images + 1, patients))
    y = (groups < times * world.positives).astype(np.int64)
    if world.mixed:
        y = (random.random(len(groups)) < random.beta(1, 1, patients)[groups]).astype(np.int64)
    shared = random.normal(size=patients)[groups] * math.sqrt(world.between)
    latent = shared + random.normal(size=len(groups)) * math.sqrt(1 - world.between) + world.shift * (y - 0.5)
    positive = np.clip(1 / (1 + np.exp(-world.confidence * world.shift * latent)), 1e-9, 1 - 1e-9)
    return y, np.stack([1 - positive, positive], axis=1), groups


def truth(world: World, *, size: int = 1_000_000, seed: int = 12345) -> dict[str, float]:
    """Return each metric in a test set of about `size` images with the same mix of classes."""
    times = 1 + size // ((world.positives + world.negatives) * (world.images + 1) // 2)
    y, proba, _ = draw(world, np.random.default_rng(seed), times)
    return {name: METRICS[name](y, proba) for name in SHOWN}


def coverage(world: World, samples: int, n_bootstrap: int, *, size: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """Return the share of `samples` test sets whose interval holds the truth, by metric and for DeLong's variants."""
    known, random = truth(world, size=size), np.random.default_rng(seed)
    held: dict[str, list[bool]] = {name: [] for name in (*SHOWN, "auc plain", "auc unclustered")}
    for number in range(samples):
        y, proba, groups = draw(world, random)
        intervals = score(y, proba, groups, n_bootstrap=n_bootstrap, seed=number)
        for name in SHOWN:
            held[name].append(_holds(intervals[name], known[name]))
        held["auc plain"].append(_holds(_plain(y, proba[:, 1], groups), known["roc_auc"]))
        alone = score(y, proba, n_bootstrap=0)["roc_auc"]
        held["auc unclustered"].append(_holds(alone, known["roc_auc"]))
    return {name: float(np.mean(row)) for name, row in held.items()}


def false_alarms(world: World, samples: int, n_bootstrap: int, *, seed: int = 0) -> dict[str, float]:
    """Return how often the paired tests call two equally good models different at 5 %."""
    random, alarms = np.random.default_rng(seed), []
    for number in range(samples):
        y, proba, groups = draw(world, random)
        logit = np.log(proba[:, 1] / proba[:, 0])
        a, b = (1 / (1 + np.exp(-(logit + random.normal(size=len(y))))) for _ in range(2))
        first, second = (np.stack([1 - p, p], axis=1) for p in (a, b))
        test = bootstrap_test("pr_auc", y, first, second, groups, n_bootstrap=n_bootstrap, seed=number)
        alarms.append((delong_test(y, a, b, groups).p_value < 0.05, test.p_value < 0.05))
    return dict(zip(("DeLong test", "bootstrap test"), np.mean(alarms, axis=0).tolist(), strict=True))


class Task(NamedTuple):
    """What heads are cross-validated on: normal features, a few of which differ between the classes."""

    patients: int
    images: int  # of each patient
    shift: float  # of each telling feature, in standard deviations of an image within its patient
    between: float  # variance between patients
    telling: int = 6
    features: int = 40


TASKS: dict[str, Task] = {
    "cv, 24 patients": Task(24, 10, 0.5, 1.0),
    "cv, 24 patients, noise": Task(24, 10, 0.0, 1.0),
    "cv, 80 patients": Task(80, 4, 0.4, 1.0),
    "cv, 80 images": Task(80, 1, 0.45, 0.0),
}
CROSS_VALIDATED = ("logistic", "lda", "ridge", "knn")


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
    task: Task, head: str, samples: int, n_bootstrap: int, *, times: int = 20, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share of cross-validations whose interval holds the truth, and the mean error, by metric."""
    random, held, errors = np.random.default_rng(seed), [], []
    for number in range(samples):
        drawn, new = view(task, random), view(task, random, times)
        judged: list[Floats] = []
        make: Callable[[], Head] = lambda: _Judged(make_head(head, seed=0), new, judged)  # type: ignore[return-value]  # noqa: B023, E731
        found = fit(make, [drawn], PROTOCOLS["cv"], seed=number).predictions
        of = np.repeat(np.arange(len(judged)), len(new.y))
        known = {name: METRICS[name](np.tile(new.y, len(judged)), np.concatenate(judged), folds=of) for name in SHOWN}
        intervals = score(found.y, found.proba, found.groups, folds=found.fold, n_bootstrap=n_bootstrap, seed=number)
        held.append([_holds(intervals[name], known[name]) for name in SHOWN])
        errors.append([intervals[name].value - known[name] for name in SHOWN])
    return tuple(dict(zip(SHOWN, np.mean(rows, axis=0).tolist(), strict=True)) for rows in (held, errors))  # type: ignore[return-value]


def false_lower(world: World, models: int, samples: int, *, seed: int = 0) -> dict[str, float]:
    """Return how often any of equally good models is called lower than the chosen one, by protocol."""
    random, called = np.random.default_rng(seed), []
    for number in range(samples):
        y, proba, groups = draw(world, random)
        folds = grouped_folds(y, groups.astype(str), 5, seed=number)
        logit = np.log(proba[:, 1] / proba[:, 0])
        noisy = 1 / (1 + np.exp(-(logit + random.normal(size=(models, len(y))))))
        probas = np.stack([1 - noisy, noisy], axis=2)
        best = int(np.argmax([METRICS["roc_auc"](y, p, folds=folds) for p in probas]))
        tests = (
            compare_with(y, probas, groups, chosen_here=False, seed=number),
            compare_with(y, probas, groups, reference=best, chosen_here=True, folds=folds, seed=number),
        )
        called.append([any(t.difference.high < 0 for t in row) for row in tests])
    return dict(zip((f"split, {models}", f"cv, {models}"), np.mean(called, axis=0).tolist(), strict=True))


def _holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def _plain(y: Ints, column: Floats, groups: Ints) -> Interval:
    estimate = delong(y, column, groups)
    half = 1.959964 * float(np.sqrt(estimate.covariance[0, 0]))
    auc = float(estimate.auc[0])
    return Interval(auc, auc - half, auc + half)


def _print_row(label: str, row: Mapping[str, float] | Sequence[str], width: int = 16) -> None:
    cells = [f"{100 * v:.1f}" for v in row.values()] if isinstance(row, Mapping) else row
    print(label.ljust(34), *(cell.rjust(width) for cell in cells), flush=True)


def _coverage(designs: Sequence[str], samples: int, n_bootstrap: int) -> None:
    _print_row("coverage in %", [*SHOWN, "auc plain", "auc unclustered"])
    for name in designs:
        _print_row(name, coverage(DESIGNS[name], samples, n_bootstrap))


def _cross_validation(designs: Sequence[str], samples: int, n_bootstrap: int) -> None:
    _print_row("cross-validation, %", SHOWN)
    for name in designs:
        for head in CROSS_VALIDATED:
            held, error = coverage_of_cross_validation(TASKS[name], head, samples, n_bootstrap)
            _print_row(f"{name}, {head}", held)
            _print_row("  mean error", error)


def _alarms(designs: Sequence[str], samples: int, n_bootstrap: int) -> None:
    _print_row("false alarms in %", ["DeLong test", "bootstrap test"])
    for name in designs:
        _print_row(name, false_alarms(DESIGNS[name], samples, n_bootstrap))


def _lower(designs: Sequence[str], samples: int, n_bootstrap: int) -> None:
    _print_row("false lower in %", [f"{way}, {models}" for models in (10, 30) for way in ("split", "cv")])
    for name in designs:
        _print_row(name, {k: v for m in (10, 30) for k, v in false_lower(DESIGNS[name], m, samples).items()})


PARTS = {"coverage": _coverage, "alarms": _alarms, "lower": _lower, "cv": _cross_validation}


def main() -> None:
    """Print a table for each part, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="test sets a design")
    parser.add_argument("--bootstrap", type=int, default=500, help="replicates a test set")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--designs", nargs="*", default=[*DESIGNS, *TASKS], choices=[*DESIGNS, *TASKS])
    arguments = parser.parse_args()
    started = time.perf_counter()
    for part in arguments.parts:
        known = TASKS if part == "cv" else DESIGNS
        PARTS[part]([name for name in arguments.designs if name in known], arguments.samples, arguments.bootstrap)
    error = 100 * math.sqrt(0.95 * 0.05 / arguments.samples)
    print(f"{arguments.samples} test sets a design, standard error {error:.1f}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
