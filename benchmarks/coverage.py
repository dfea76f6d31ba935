"""How often do the intervals hold the truth, and how often do the tests cry wolf?

Run: python -m benchmarks.coverage [--samples 1000] [--bootstrap 200] [--parts NAME ...] [--columns NAME ...] [--jobs N]

Each design draws test sets from a known world. The truth of a metric is its value in a sample of that world so large
that its own error does not matter; of a cross-validation, its mean over the models of all folds on new patients.
Nominal: 95 % coverage, 5 % false alarms, 5 % of comparisons in which any of M equal models is called lower than the
best, chosen on other images (split) or on the same (cv), and an area of 0.5 where features are noise. A missing
interval does not count; a row of its own says how often there is none.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage_folds import CROSS_VALIDATED, TASKS, holds, intervals, of_cross_validation, of_noise, summed_up
from models.folds import grouped_folds
from models.heads import HEADS
from models.metrics import (
    METRICS,
    Interval,
    bootstrap_test,
    calibration_line,
    compare_with,
    delong,
    delong_test,
    operating_points,
    pr_curve_band,
    predictions_by_group,
    reliability_curve,
    roc_curve_band,
    score,
    score_of_the_chosen,
    subgroup_tables,
)
from models.metrics.registry import BINS, bin_of
from models.validation.cross_validation import PROTOCOLS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class World(NamedTuple):
    """Where test sets come from: a normal score with a share of its variance between the patients."""

    positives: int  # patients of each class but 0; of a mixed world, all patients
    negatives: int  # patients of class 0
    images: int  # most images a patient; 1: no clusters
    shift: float  # distance of the classes in standard deviations
    between: float = 0.0  # share of the variance between patients
    mixed: bool = False  # a patient has images of both classes
    confidence: float = 1.5  # the log odds given out are this times the right ones
    classes: int = 2
    varying: bool = False  # how many patients are of a class: as they come, not as somebody chose them

    @property
    def patients(self) -> int:
        """Return how many patients a test set has."""
        return self.negatives + (self.classes - 1) * self.positives


DESIGNS: dict[str, World] = {
    "single, AUC 0.86": World(60, 60, 1, 1.5),
    "single, AUC 0.98": World(60, 60, 1, 3.0),
    "single, 20 + 20": World(20, 20, 1, 1.5),
    "single, 40 + 400": World(40, 400, 1, 1.5),
    "single, AUC 0.998": World(100, 100, 1, 4.0),
    "patients, 50 + 50": World(50, 50, 6, 1.5, 0.6),
    "patients, AUC 0.98": World(50, 50, 6, 3.0, 0.6),
    "patients, calibrated": World(50, 50, 6, 1.5, 0.6, confidence=1.0),
    "patients, mixed, 80": World(80, 0, 6, 1.5, 0.6, mixed=True),
    "patients, 3 x 30": World(30, 30, 6, 2.0, 0.6, classes=3),
    "patients, 15 + 15": World(15, 15, 6, 1.5, 0.6),
    "patients, 6 + 30": World(6, 30, 6, 1.5, 0.6),
    "single, 8 + 300": World(8, 300, 1, 1.5),
}


def draw(world: World, random: np.random.Generator, times: int = 1) -> tuple[Ints, Floats, Ints]:
    """Return y (n,), proba (n, K) and groups (n,) of a test set with `times` the world's patients."""
    patients = times * world.patients
    groups = np.repeat(np.arange(patients), random.integers(1, world.images + 1, patients))
    y = np.minimum(groups // (times * world.positives), world.classes - 1)
    y = (world.classes - 1 - y).astype(np.int64)
    if world.varying:
        y = (random.random(patients) < world.positives / world.patients)[groups].astype(np.int64)
    if world.mixed:
        y = (random.random(len(groups)) < random.beta(1, 1, patients)[groups]).astype(np.int64)
    size = (len(y), 1 if world.classes == 2 else world.classes)
    shared = random.normal(size=(patients, size[1]))[groups] * math.sqrt(world.between)
    latent = shared + random.normal(size=size) * math.sqrt(1 - world.between)
    latent += world.shift * (y[:, None] - 0.5 if world.classes == 2 else np.eye(world.classes)[y])
    odds = world.confidence * world.shift * latent
    raised = np.exp(np.hstack([np.zeros_like(odds), odds]) if world.classes == 2 else odds)
    proba = np.clip(raised / raised.sum(axis=1, keepdims=True), 1e-9, 1 - 1e-9)
    return y, proba / proba.sum(axis=1, keepdims=True), groups


def printed(y: Ints, proba: Floats, groups: Ints, point: float | None, **draws: int) -> dict[str, Interval]:
    """Return every interval that is printed of one model: scores, operating point, calibration, curves, patients."""
    found = intervals(y, proba, groups, **draws)
    if point is None:
        return found
    column = proba[:, 1]
    at = score(y, proba, groups, threshold=point, **draws)
    found |= {f"{name} at the point": at[name] for name in ("sensitivity", "specificity")}
    for name, curve, x in (("ROC band", roc_curve_band, 0.2), ("PR band", pr_curve_band, 0.8)):
        band = curve(y, column, groups, grid=6, **draws)
        place = int(np.argmin(np.abs(band.x - x)))
        found[f"{name} at {x}"] = Interval(*(float(side[place]) for side in band[1:]))
    found |= _bars(y, column, groups)
    together = predictions_by_group(y, proba, groups)
    by_patient = score(together.y, together.proba, **draws)
    return found | {f"by patient: {name}": by_patient[name] for name in ("roc_auc", "sensitivity", "brier")}


def _calibrated(y: Ints, proba: Floats, groups: Ints, point: float | None, **draws: int) -> dict[str, Interval]:
    """Return the intervals of the ROC AUC, of the calibration slope and of the intercept."""
    line, area = calibration_line(y, proba[:, 1], groups), score(y, proba, groups, only=("roc_auc",), n_bootstrap=0)
    return area | {"calibration slope": line.slope, "calibration intercept": line.intercept}


def _bars(y: Ints, column: Floats, groups: Ints) -> dict[str, Interval]:
    """Return the bars of the reliability diagram on at least six groups, named by their bins."""
    curve, place = reliability_curve(y, column, groups), bin_of(column, BINS)
    bars = {}
    for b, *row in zip(np.unique(place).tolist(), curve.observed, curve.low, curve.high, strict=True):
        held = len(np.unique(groups[place == b]))
        bars |= {f"{'bar' if held >= 20 else 'bar of few'} {b}": Interval(*row)} if held >= 6 else {}
    return bars


@cache
def truth(
    world: World, of: Callable[..., dict[str, Interval]] = printed, *, size: int = 100_000, seed: int = 12345
) -> tuple[dict[str, float], float | None]:
    """Return what `of` would give of about `size` images with the same mix of classes, and an operating point."""
    times = 1 + size // (world.patients * (world.images + 1) // 2)
    y, proba, groups = draw(world, np.random.default_rng(seed), times)
    point = operating_points(y, proba[:, 1])["sensitivity>=0.95"] if world.classes == 2 else None
    values = {name: row.value for name, row in of(y, proba, groups, point, n_bootstrap=0).items()}
    return values | {name.replace("bar", "bar of few"): v for name, v in values.items() if name[:4] == "bar "}, point


def coverage(
    world: World,
    samples: int,
    n_bootstrap: int,
    of: Callable[..., dict[str, Interval]] = printed,
    *,
    size: int = 100_000,
    seed: int = 0,
) -> dict[str, float]:
    """Return the share of `samples` test sets whose interval holds the truth, by name, and of DeLong's variants."""
    (known, point), random = truth(world, of, size=size), np.random.default_rng(seed)
    held: dict[str, list[float]] = {}
    for number in range(samples):
        y, proba, groups = draw(world, random)
        found = of(y, proba, groups, point, n_bootstrap=n_bootstrap, seed=number)
        for name, interval in found.items():
            held.setdefault(name.rstrip("0123456789 ") if name[:3] == "bar" else name, []).append(
                holds(interval, known[name])
            )
        if world.classes == 2:
            held.setdefault("auc plain", []).append(holds(_plain(y, proba[:, 1], groups), known["roc_auc"]))
            alone = score(y, proba, only=("roc_auc",), n_bootstrap=0)["roc_auc"]
            held.setdefault("auc unclustered", []).append(holds(alone, known["roc_auc"]))
    return summed_up(held)


def _plain(y: Ints, column: Floats, groups: Ints) -> Interval:
    estimate = delong(y, column, groups)
    half = 1.959964 * float(np.sqrt(estimate.covariance[0, 0]))
    auc = float(estimate.auc[0])
    return Interval(auc, auc - half, auc + half)


def against(world: World, samples: int, n_bootstrap: int, *, equal: bool, seed: int = 0) -> dict[str, float]:
    """Return how often the interval of the difference of two models holds the truth, in which one is worse or not."""
    times = 1 + 100_000 // (world.patients * (world.images + 1) // 2)
    y, first, second, _ = _pair(world, np.random.default_rng(12345), times, equal)
    known = {name: 0.0 if equal else METRICS[name](y, first) - METRICS[name](y, second) for name in DIFFERENCES}
    random = np.random.default_rng(seed)
    held: dict[str, list[float]] = {}
    for number in range(samples):
        y, first, second, groups = _pair(world, random, 1, equal)
        tests = {"DeLong": delong_test(y, first[:, 1], second[:, 1], groups)}
        for name in DIFFERENCES:
            tests[name] = bootstrap_test(name, y, first, second, groups, n_bootstrap=n_bootstrap, seed=number)
        for name, test in tests.items():
            held.setdefault(name, []).append(holds(test.difference, known["roc_auc" if name == "DeLong" else name]))
    return summed_up(held)


DIFFERENCES = ("roc_auc", "pr_auc", "sensitivity", "f1", "brier", "log_loss")


def _pair(world: World, random: np.random.Generator, times: int, equal: bool) -> tuple[Ints, Floats, Floats, Ints]:
    y, proba, groups = draw(world, random, times)
    logit = np.log(proba[:, 1] / proba[:, 0])
    noisy = (logit + size * random.normal(size=len(y)) for size in (1.0, 1.0 if equal else 3.0))
    first, second = (np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], axis=1) for odds in noisy)
    return y, first, second, groups


def of_subgroups(world: World, samples: int, n_bootstrap: int, *, seed: int = 0) -> dict[str, float]:
    """Return coverage of the scores of two subgroups that do not differ, and how often a test finds a difference."""
    (known, _), random = truth(world), np.random.default_rng(seed)
    held: dict[str, list[float]] = {}
    for number in range(samples):
        y, proba, groups = draw(world, random)
        column = np.where(random.random(int(groups.max()) + 1) < 1 / 2, "a", "b")[groups]
        (table,) = subgroup_tables(y, proba, {"side": column}, groups, n_bootstrap=n_bootstrap, seed=number)
        for row in table.rows:
            for name, interval in row.scores.items():
                held.setdefault(name, []).append(holds(interval, known[name]))
        for name, p_value in table.p_values.items():
            held.setdefault(f"{name} differs", []).append(float(p_value < 0.05))
    return summed_up(held)


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


def of_the_chosen(world: World, models: int, samples: int, n_bootstrap: int, *, seed: int = 0) -> dict[str, float]:
    """Return how often the corrected interval of the best of equally good models holds their area."""
    times = 1 + 100_000 // (world.patients * (world.images + 1) // 2)
    y, first, _, _ = _pair(world, np.random.default_rng(12345), times, True)
    known, random, held = METRICS["roc_auc"](y, first), np.random.default_rng(seed), list[float]()
    for number in range(samples):
        y, proba, groups = draw(world, random)
        logit = np.log(proba[:, 1] / proba[:, 0])
        noisy = 1 / (1 + np.exp(-(logit + random.normal(size=(models, len(y))))))
        probas = np.stack([1 - noisy, noisy], axis=2)
        held.append(holds(score_of_the_chosen(y, list(probas), groups, n_bootstrap=n_bootstrap, seed=number), known))
    return {f"corrected, {models}": float(np.mean(held))}


def _of_lower(name: str, samples: int, n_bootstrap: int, seed: int) -> dict[str, float]:
    world = DESIGNS[name]
    rows = [false_lower(world, models, samples, seed=seed) for models in (10, 30)]
    return rows[0] | rows[1] | of_the_chosen(world, 10, samples, n_bootstrap, seed=seed)


def _of_differences(name: str, samples: int, n_bootstrap: int, seed: int) -> dict[str, float]:
    world, rows = DESIGNS[name], {}
    for label, equal in (("equal models", True), ("a worse one", False)):
        found = against(world, samples, n_bootstrap, equal=equal, seed=seed)
        rows |= {f"{metric}, {label}": share for metric, share in found.items()}
    return rows


class Part(NamedTuple):
    """One table of the benchmark."""

    title: str
    columns: Sequence[str]
    of: Callable[[str, int, int, int], Mapping[str, float]]  # of a column, samples, replicates, seed
    share: float = 1.0  # of the samples


_TESTED = ("single, AUC 0.86", "single, 20 + 20", "patients, 50 + 50", "patients, 15 + 15")
PARTS = {
    "coverage": Part(
        "Coverage of 95 % intervals, %",
        list(DESIGNS),
        lambda name, *draws: coverage(DESIGNS[name], *draws[:2], seed=draws[2]),
    ),
    "mix": Part(
        "Coverage of 95 % intervals where the mix of classes varies, %",
        [name for name, world in DESIGNS.items() if world.classes == 2 and world.positives >= 15 and not world.mixed],
        lambda name, *draws: coverage(DESIGNS[name]._replace(varying=True), *draws[:2], _calibrated, seed=draws[2]),
    ),
    "subgroups": Part(
        "Coverage in subgroups, and differences found where there are none, %",
        ["single, AUC 0.86", "patients, 50 + 50", "patients, mixed, 80"],
        lambda name, *draws: of_subgroups(DESIGNS[name], *draws[:2], seed=draws[2]),
    ),
    "differences": Part("Coverage of differences, %", _TESTED, _of_differences),
    "lower": Part("False lower, and coverage corrected for the choice, %", (_TESTED[0], _TESTED[3]), _of_lower),
    "cv": Part(
        "Coverage of cross-validation, %",
        [f"{task}; {head}; {protocol}" for task in TASKS for head in CROSS_VALIDATED[task] for protocol in PROTOCOLS],
        of_cross_validation,
    ),
    "noise": Part("Cross-validated area of noise in 24 patients", list(HEADS), of_noise, 1 / 100),
}


def _work(task: tuple[str, str, int, int, int]) -> tuple[str, str, int, Mapping[str, float]]:
    part, column, samples, n_bootstrap, seed = task
    return part, column, samples, PARTS[part].of(column, samples, n_bootstrap, seed)


def _print(part: str, found: Mapping[str, list[tuple[int, Mapping[str, float]]]]) -> None:
    """Print a table with a row for each interval and a column for each design, each the mean of its chunks."""
    columns, scale = list(found), 1 if part == "noise" else 100
    print(f"\n{PARTS[part].title}\n\n| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    names = dict.fromkeys(name for chunks in found.values() for _, row in chunks for name in row)
    for name in names:
        cells = []
        for chunks in found.values():
            held = [(samples, row[name]) for samples, row in chunks if name in row]
            mean = sum(n * v for n, v in held) / sum(n for n, _ in held) if held else math.nan
            cells.append("" if math.isnan(mean) else f"{scale * mean:.{4 if part == 'noise' else 1}f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table for each part, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="test sets a design")
    parser.add_argument("--bootstrap", type=int, default=200, help="replicates a test set")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--columns", nargs="*", default=[], help="only these designs, tasks or heads")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    started = time.perf_counter()
    for name in arguments.parts:
        part, found = PARTS[name], {}
        columns = [column for column in part.columns if not arguments.columns or column in arguments.columns]
        each = math.ceil(arguments.samples * part.share / CHUNKS)
        tasks = [(name, column, each, arguments.bootstrap, seed) for column in columns for seed in range(CHUNKS)]
        with ProcessPoolExecutor(arguments.jobs) as pool:
            for _, column, samples, row in pool.map(_work, tasks):
                found.setdefault(column, []).append((samples, row))
        _print(name, found)
        print(f"\n{time.perf_counter() - started:.0f} s so far", flush=True)
    print(f"{arguments.samples} samples, standard error {100 * math.sqrt(0.95 * 0.05 / arguments.samples):.1f} at 95 %")


CHUNKS = 2  # of a column, each with a seed of its own


if __name__ == "__main__":
    main()
