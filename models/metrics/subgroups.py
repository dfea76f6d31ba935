"""Scores by subgroup (sex, age, site, device) and predictions by group (patient)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import unknown
from models.metrics.bootstrap import Interval, resamples
from models.metrics.calibration import CalibrationLine, calibration_line
from models.metrics.registry import METRICS, score, values
from models.metrics.sample import BadPredictions, Floats, Ints, Sample, make_sample, two_classes
from models.metrics.significance import holm


class GroupPredictions(NamedTuple):
    """One row a group, sorted by its name."""

    groups: NDArray[Any]  # (G,)
    y: Ints  # (G,)
    proba: Floats  # (G, K)
    images: Ints  # (G,)
    mixed: int  # groups whose images are of several classes


def _mean(place: Ints, positive: Floats, size: int) -> Floats:
    return np.bincount(place, positive, minlength=size) / np.bincount(place, minlength=size)


def _maximum(place: Ints, positive: Floats, size: int) -> Floats:
    highest = np.zeros(size)
    np.maximum.at(highest, place, positive)
    return highest


def _noisy_or(place: Ints, positive: Floats, size: int) -> Floats:
    with np.errstate(divide="ignore"):  # log 0: one certain image is enough
        return np.asarray(-np.expm1(np.bincount(place, np.log1p(-positive), minlength=size)))


# how the probabilities of the positive class of a group's images become the group's: mean; the most suspicious image;
# one that at least one image is positive, were they independent (Pearl 1988)
AGGREGATES: dict[str, Callable[[Ints, Floats, int], Floats]] = {
    "mean": _mean,
    "maximum": _maximum,
    "noisy-or": _noisy_or,
}


def predictions_by_group(y: ArrayLike, proba: ArrayLike, groups: ArrayLike, how: str = "mean") -> GroupPredictions:
    """Return the predictions of groups (patients) from those of their images.

    y (n,), proba (n, K), groups (n,). Of two classes a group is positive where any image of it is; of more, groups
    whose images are of several classes are left out. Raises UnknownName, BadPredictions.
    """
    sample = make_sample(y, proba, groups)
    names, joined, images = probabilities_by_group(sample.proba, groups, how)
    highest, lowest = np.zeros(len(names), np.int64), np.full(len(names), sample.n_classes)
    np.maximum.at(highest, sample.groups, sample.y)
    np.minimum.at(lowest, sample.groups, sample.y)
    kept = np.full(len(names), True) if sample.binary else highest == lowest
    return GroupPredictions(names[kept], highest[kept], joined[kept], images[kept], int((highest != lowest).sum()))


def probabilities_by_group(proba: Floats, groups: ArrayLike, how: str = "mean") -> tuple[NDArray[Any], Floats, Ints]:
    """Return the names (G,), probabilities (G, K) and images (G,) of groups from the probabilities of images (n, K).

    `how` is a row of AGGREGATES, of which more than two classes have the mean only. Raises UnknownName, BadPredictions.
    """
    if how not in AGGREGATES:
        raise unknown("aggregate", how, AGGREGATES)
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if proba.shape[1] == 2:
        positive = AGGREGATES[how](place, proba[:, 1], len(names))
        return names, two_classes(positive), np.bincount(place)
    if how != "mean":
        raise BadPredictions(
            f"AGGREGATE={how} is for two classes, and there are {proba.shape[1]}; leave it for the mean"
        )
    return names, np.stack([_mean(place, column, len(names)) for column in proba.T], axis=1), np.bincount(place)


COMPARED = ("roc_auc", "sensitivity", "specificity")
FEWEST = 20  # groups of a class, below which scores of a subgroup tell little (Collins et al. 2016 ask for 100 events)


class Subgroup(NamedTuple):
    """The images of one value of a column."""

    name: str
    images: tuple[int, ...]  # of each class, each once however often it was predicted
    groups: tuple[int, ...]  # that hold an image of each class
    scores: Mapping[str, Interval]  # of COMPARED
    calibration: CalibrationLine | None  # of two classes

    @property
    def few(self) -> bool:
        """Return whether a class has too few groups for its scores to tell much."""
        return min(self.groups) < FEWEST


class SubgroupTable(NamedTuple):
    """The subgroups of one column, with a test of each score for differences between them."""

    column: str
    rows: tuple[Subgroup, ...]
    left_out: int  # images without a value
    p_values: Mapping[str, float]  # by score; NaN: cannot be tested
    p_adjusted: Mapping[str, float]  # by Holm over all scores of all columns


def in_bins(numbers: ArrayLike, edges: Sequence[float]) -> NDArray[np.str_]:
    """Return the bin of each number (n,) in words: "under 18", "18 to under 65", "65 or more"; empty for NaN.

    `edges` rise; each is the first number of its bin.
    """
    given = np.asarray(numbers, dtype=np.float64)
    between = [f"{low:g} to under {high:g}" for low, high in pairwise(edges)]
    names = np.array([f"under {edges[0]:g}", *between, f"{edges[-1]:g} or more"])
    return np.where(np.isnan(given), "", names[np.searchsorted(np.asarray(edges), given, side="right")])


def subgroup_tables(
    y: ArrayLike,
    proba: ArrayLike,
    columns: Mapping[str, ArrayLike],
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[SubgroupTable]:
    """Return the scores of every subgroup, and tests of the differences between subgroups, Holm-corrected over all.

    y (n,), proba (n, K), groups (n,), folds (n,), threshold one for all or (n,); `columns` {name: (n,)} of values whose
    words name a subgroup, empty where there is none. A test is Wald's of equal scores of the subgroups that have two
    groups of each class that the score needs, by the covariance of a bootstrap over groups in which a group may be in
    several subgroups, against F with the fewest groups' degrees of freedom. Raises BadPredictions.
    """
    whole = make_sample(y, proba, groups, folds=folds, threshold=threshold)
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    tables = []
    for name, column in columns.items():
        words = np.asarray(column).astype(np.str_)
        if words.shape != whole.y.shape:
            raise BadPredictions(f"expected one value of {name} an image, got {len(words)} for {len(whole.y)} images")
        parts = {value: words == value for value in np.unique(words) if value}
        rows = [subgroup(value, whole, at, level=level, **draws) for value, at in parts.items()]
        p_values = _tests(whole.by_fold(), list(parts.values()), **draws)
        tables.append(SubgroupTable(name, tuple(rows), int((words == "").sum()), p_values, {}))
    adjusted = iter(holm([p for table in tables for p in table.p_values.values()]).tolist())
    return [table._replace(p_adjusted={name: next(adjusted) for name in table.p_values}) for table in tables]


def subgroup(
    name: str, whole: Sample, at: NDArray[np.bool_], *, level: float = 0.95, n_bootstrap: int = 2000, seed: int = 0
) -> Subgroup:
    """Return the scores of the images of a sample under a mask (n,), with the decisions that the sample has of them."""
    y, proba, groups, folds = whole.y[at], whole.proba[at], whole.groups[at], whole.folds[at]
    draws: dict[str, Any] = {"folds": folds, "level": level}
    right = np.where(whole.decision[at] == 1, 0.0, 2.0) if whole.binary else None  # the threshold that decides so
    scores = score(y, proba, groups, threshold=right, only=COMPARED, n_bootstrap=n_bootstrap, seed=seed, **draws)
    line = calibration_line(y, proba[:, 1], groups, **draws) if whole.binary else None
    sample = make_sample(y, proba, groups, folds=folds)
    images = np.bincount(y, minlength=whole.n_classes) / sample.by_fold().repeats
    return Subgroup(
        name, tuple(images.round().astype(int).tolist()), tuple(sample.groups_by_class.tolist()), scores, line
    )


def _part(whole: Sample, at: NDArray[np.bool_]) -> tuple[Sample, NDArray[np.int64]]:
    """Return the sample of some images, and the numbers of its groups in the whole."""
    present, codes = np.unique(whole.groups[at], return_inverse=True)
    columns = (whole.y[at], whole.proba[at], whole.decision[at])
    return Sample(*columns, codes, whole.folds[at], whole.repeats), present


def _tests(whole: Sample, parts: Sequence[NDArray[np.bool_]], *, n_bootstrap: int, seed: int) -> dict[str, float]:
    """Return the p-value of each score of COMPARED for no difference between the parts that have it, of two groups."""
    rows, samples = {name: METRICS[name] for name in COMPARED}, [_part(whole, at) for at in parts]
    blocks = [np.ones((1, whole.n_groups)), *resamples(whole, n_bootstrap, seed)]
    drawn = [[values(rows, sample, weights[:, present]) for weights in blocks] for sample, present in samples]
    p_values = {}
    for name, metric in rows.items():
        found = np.stack([np.concatenate([block[name] for block in part]) for part in drawn])
        evidence = np.array([metric.evidence(sample) for sample, _ in samples])
        told = (evidence >= 2) & ~np.isnan(found[:, 0])
        p_values[name] = _wald(found[told, 0], found[told, 1:], min(evidence[told], default=0.0), whole.inflation)
    return p_values


def _wald(score: Floats, drawn: Floats, evidence: float, inflation: float) -> float:
    """Return the p-value of equal scores (L,) from replicates (L, b); NaN where they cannot be tested."""
    from scipy.special import fdtrc

    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    apart, freedom = len(score) - 1, evidence - len(score) + 1
    if apart < 1 or freedom <= 0 or np.isnan(score).any() or drawn.shape[1] <= len(score):
        return np.nan
    difference, replicates = score[1:] - score[0], drawn[1:] - drawn[0]
    covariance = np.atleast_2d(np.cov(replicates)) * inflation * evidence / (evidence - 1)
    if not np.linalg.cond(covariance) < 1e12:
        return np.nan
    statistic = float(difference @ np.linalg.solve(covariance, difference))
    return float(fdtrc(apart, freedom, statistic * freedom / (apart * (evidence - 1))))
