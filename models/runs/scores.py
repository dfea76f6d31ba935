"""All that can be said of one run by itself: scores with intervals, operating points, calibration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError, listed
from models.metrics import CALIBRATIONS, Interval, Metric, calibration_line, operating_points, ordered_metrics, score
from models.metrics.sample import two_classes
from models.runs.record import Run
from models.validation.predictions import Predictions

LEVEL = 0.95
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
NO_METRICS: Mapping[str, Metric] = MappingProxyType({})
CALIBRATED = ("brier", "ece", "log_loss")


def shown(run: Run) -> Predictions:
    """Return the predictions that tables and curves are about: on test images, out of fold where there are none."""
    test = run.predictions.part(test=True)
    return test if len(test.y) else run.predictions.part(test=False)


@dataclass(frozen=True)
class RunScores:
    """Thresholds, scores on both parts and the confusion matrix of a run; see `models.runs.results.RunResult`."""

    threshold: float | None
    validation: Mapping[str, Any]
    test: Mapping[str, Any] | None
    confusion: list[list[int]]
    thresholds: Mapping[str, Any]


def scored(run: Run, also: Mapping[str, Metric] = NO_METRICS, *, seed: int, n_bootstrap: int) -> RunScores:
    """Return thresholds, scores on both parts, by further metrics too, and the confusion matrix of a run."""
    held, tested = (run.predictions.part(test=test) for test in (False, True))
    part, points, applied = shown(run), fixed_thresholds(held), applied_thresholds(run)
    scores = partial(_scores, also=also, seed=seed, n_bootstrap=n_bootstrap)
    at = {name: scores(part, applied[name]) for name in points}
    decided = at.get("youden") or scores(part, None)
    return RunScores(
        points.get("youden"),
        scores(held, points.get("youden")) if len(tested.y) else decided,
        decided if len(tested.y) else None,
        _confusion(part, applied.get("youden")),
        {
            name: {"threshold": points[name], **{metric: at[name][metric] for metric in ("sensitivity", "specificity")}}
            for name in points
        },
    )


def applied_thresholds(run: Run) -> dict[str, Any]:
    """Return for each rule what decides the images that are shown: one threshold, out of fold one an image (n,)."""
    held = run.predictions.part(test=False)
    if len(run.predictions.part(test=True).y):
        return dict(fixed_thresholds(held))
    return dict(_thresholds_of_other_folds(held, run.record.folds))


def fixed_thresholds(held: Predictions) -> dict[str, float]:
    """Return the thresholds that out-of-fold predictions choose; none for more than two classes."""
    if held.proba.shape[1] != 2:
        return {}
    return {name: at for name, at in operating_points(held.y, held.proba[:, 1]).items() if not math.isnan(at)}


def _thresholds_of_other_folds(held: Predictions, folds: int) -> dict[str, NDArray[np.float64]]:
    """Return for each rule and image (n,) the threshold that the other folds of its repeat choose."""
    rules = {name: np.zeros(len(held.y)) for name in fixed_thresholds(held)}
    for own, others in other_folds(held, folds):
        for name, threshold in fixed_thresholds(others).items():
            rules[name][own] = threshold
    return rules


def other_folds(held: Predictions, folds: int) -> Iterator[tuple[NDArray[np.bool_], Predictions]]:
    """Yield the place of each fold, (n,), and the predictions of the other folds of its repeat."""
    for fold in np.unique(held.fold).tolist():
        own = held.fold == fold
        others = (held.fold // folds == fold // folds) & ~own
        yield own, held.take(others)


def _scores(
    part: Predictions,
    threshold: Any,
    only: Sequence[str] = (),
    also: Mapping[str, Metric] = NO_METRICS,
    *,
    seed: int,
    n_bootstrap: int,
) -> dict[str, Any]:
    """Return every metric, or only some, and further ones, with its interval."""
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed, "only": only, "also": also, "level": LEVEL}
    scores = score(part.y, part.proba, part.groups, folds=part.fold, threshold=threshold, **draws)
    return {name: as_dict(row) for name, row in scores.items()}


def grades(classes: Sequence[str]) -> dict[str, Metric]:
    """Return the further metrics of classes (K,) that are numbers: ordered grades. Raises FirnError for others."""
    values = [float(name) if _NUMBER.fullmatch(name) else math.nan for name in classes]
    if any(map(math.isnan, values)):
        raise FirnError(
            f"expected classes that are numbers, such as 0 to 4, for ORDERED=1, got {listed(classes)}; "
            "write the grades as numbers in the table of labels, or leave ORDERED=1 away"
        )
    return ordered_metrics([sorted(values).index(value) for value in values])


def _confusion(part: Predictions, threshold: Any) -> list[list[int]]:
    """Return the images of each true class (rows) decided as each class (columns)."""
    k = part.proba.shape[1]
    decided = part.proba.argmax(axis=1) if threshold is None else (part.proba[:, 1] >= threshold).astype(np.int64)
    counts: list[list[int]] = np.bincount(part.y * k + decided, minlength=k * k).reshape(k, k).tolist()
    return counts


def by_class(run: Run, confusion: Sequence[Sequence[int]], *, seed: int, n_bootstrap: int) -> list[dict[str, Any]]:
    """Return what a run makes of each class against the rest; nothing for two classes."""
    part, counts = shown(run), np.array(confusion)
    if part.proba.shape[1] == 2:
        return []
    classes, repeats = [], 1 if (part.fold < 0).any() else run.record.repeats
    for k, name in enumerate(run.record.classes):
        one = part._replace(y=(part.y == k).astype(np.int64), proba=two_classes(part.proba[:, k]))
        area = _scores(one, None, ("roc_auc", "pr_auc"), seed=seed, n_bootstrap=n_bootstrap)
        right, true, decided = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        classes.append(
            {
                "name": name,
                "images": true // repeats,
                **area,
                "recall": right / true if true else None,
                "precision": right / decided if decided else None,
            }
        )
    return classes


def calibrations(run: Run, *, seed: int, n_bootstrap: int) -> dict[str, dict[str, Any]]:
    """Return {"none", "temperature", ...: its scores} of a run, before and after each calibration.

    Those of CALIBRATED, and of two classes the calibration slope and intercept. Fitted on out-of-fold predictions;
    without test images on those of the other folds.
    """
    part, found = shown(run), {}
    for name in ("none", *CALIBRATIONS):
        each = part._replace(proba=calibrated(run, name))
        found[name] = _scores(each, None, CALIBRATED, seed=seed, n_bootstrap=n_bootstrap) | line_of(each)
    return found


def line_of(part: Predictions) -> dict[str, Any]:
    """Return calibration slope and intercept of two classes with their intervals; nothing for more."""
    if part.proba.shape[1] != 2:
        return {}
    line = calibration_line(part.y, part.proba[:, 1], part.groups, folds=part.fold, level=LEVEL)
    return {name: as_dict(interval) for name, interval in line._asdict().items()}


def calibrated(run: Run, name: str) -> NDArray[np.float64]:
    """Return the probabilities that are shown, (n, K), after a row of CALIBRATIONS; "none" for those that came."""
    part, held = shown(run), run.predictions.part(test=False)
    if name == "none":
        return part.proba
    if len(run.predictions.part(test=True).y):
        return CALIBRATIONS[name](held.y, held.proba)(part.proba)
    return _crosswise(CALIBRATIONS[name], held, run.record.folds)


def _crosswise(make: Any, held: Predictions, folds: int) -> NDArray[np.float64]:
    """Return the predictions of each fold, calibrated on the other folds of its repeat."""
    proba = held.proba.copy()
    for own, others in other_folds(held, folds):
        proba[own] = make(others.y, others.proba)(held.proba[own])
    return proba


def as_dict(interval: Interval) -> dict[str, float | None]:
    """Return an interval ready for JSON."""
    return {name: number(value) for name, value in interval._asdict().items()}


def number(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)
