"""Scores of several findings per image: each a binary sample of the images that have its label, and their mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics.bootstrap import CELLS, Interval, logit_interval
from models.metrics.registry import METRICS, replicated, score
from models.metrics.sample import BadPredictions, Floats, Ints, Sample, make_sample, two_classes

AREAS = ("roc_auc", "pr_auc")  # of which there is a mean over the findings
_FEWEST = 2  # groups with a finding, and as many without, from which on an area counts in the mean


class FindingScores(NamedTuple):
    """The scores of several findings on the same images."""

    each: list[dict[str, Interval]]  # of each finding every row of METRICS
    macro: dict[str, Interval]  # the mean of each of AREAS over the findings that count
    counted: NDArray[np.bool_]  # (L,) which findings count in the mean


def score_findings(
    y: ArrayLike,
    proba: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    thresholds: Sequence[ArrayLike | None] | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> FindingScores:
    """Return each metric of each finding, and the mean of the areas over the findings, with confidence intervals.

    y (n, L) of 0, 1 and -1 (missing: the image does not count for that finding), proba (n, L), groups (n,), folds (n,);
    `thresholds` of each finding, a number, (n,) or None. A finding is scored as `score` does. The interval of a mean
    comes from a bootstrap in which all findings see the same draws of groups, so that patients with several of them
    count once; a finding counts in the mean where two groups have it and two have not. Raises BadPredictions.
    """
    labels, chances = _checked(y, proba)
    of, fold = _columns(len(labels), groups, folds)
    each = []
    for k, column in enumerate(labels.T):
        own = column >= 0
        at = None if thresholds is None or thresholds[k] is None else np.asarray(thresholds[k])
        cut = at[own] if at is not None and at.ndim else at
        chance = two_classes(chances[own, k])
        draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "level": level, "seed": seed}
        each.append(score(column[own], chance, of[own], folds=fold[own], threshold=cut, **draws) if own.any() else {})
    means = Means.of(labels, chances, of, fold, n_bootstrap=n_bootstrap, seed=seed)
    return FindingScores(each, {name: means.interval(name, level) for name in AREAS}, means.counted)


class Means(NamedTuple):
    """The areas of each finding that counts, and their replicates on the same draws of groups."""

    counted: NDArray[np.bool_]  # (L,)
    value: dict[str, Floats]  # (L',) for each of AREAS
    drawn: dict[str, Floats]  # (L', b); NaN where a draw lacks the finding
    evidence: Floats  # (L',) effective number of groups
    groups: int  # all of them

    @classmethod
    def of(
        cls,
        y: ArrayLike,
        proba: ArrayLike,
        groups: ArrayLike | None,
        folds: ArrayLike | None,
        *,
        n_bootstrap: int,
        seed: int,
    ) -> Means:
        """Return the areas of y (n, L) and proba (n, L), and `n_bootstrap` replicates. Raises BadPredictions."""
        labels, chances = _checked(y, proba)
        of, fold = _columns(len(labels), groups, folds)
        cells = np.unique(of * (int(fold.max()) + 1) + fold, return_inverse=True)[1]
        repeats = (int(cells.max()) + 1) / (int(of.max()) + 1)
        counted = np.array([_counts(column, of) for column in labels.T], dtype=bool)
        metrics = {name: METRICS[name] for name in AREAS}
        found, evidence, draws = [], [], list(_draws(cells, n_bootstrap, len(labels), seed))
        for k in np.flatnonzero(counted):
            own = labels[:, k] >= 0
            sample = _sample(labels[own, k], chances[own, k], cells[own], fold[own], repeats)
            present = np.unique(cells[own])
            found.append(replicated(metrics, sample, [block[:, present] for block in draws]))
            evidence.append(METRICS["roc_auc"].evidence(sample))
        return cls(
            counted,
            {name: np.array([value[name] for value, _ in found]) for name in AREAS},
            {name: np.array([drawn[name] for _, drawn in found]).reshape(len(found), n_bootstrap) for name in AREAS},
            np.array(evidence),
            int(of.max()) + 1,
        )

    def mean(self, name: str) -> float:
        """Return the mean of an area over the findings; NaN where none counts."""
        return float(self.value[name].mean()) if self.counted.any() else np.nan

    def replicates(self, name: str) -> Floats:
        """Return the replicates (b,) of the mean: a finding that a draw lacks stands at its own value there."""
        filled = np.where(np.isnan(self.drawn[name]), self.value[name][:, None], self.drawn[name])
        return np.asarray(filled.mean(axis=0)) if len(filled) else np.empty(0)

    def freedom(self, name: str) -> float:
        """Return the effective number of groups of the mean, by Satterthwaite 1946 from those of the findings."""
        if not len(self.evidence):
            return 1.0
        variance = (
            np.nanvar(self.drawn[name], axis=1) if self.drawn[name].shape[1] > 1 else np.zeros(len(self.evidence))
        )
        if not variance.sum() > 0:
            return float(self.evidence.min())
        return float(1 + variance.sum() ** 2 / (variance**2 / np.maximum(self.evidence - 1, 1e-9)).sum())

    def interval(self, name: str, level: float) -> Interval:
        """Return the mean of an area with its confidence interval."""
        return logit_interval(self.mean(name), self.replicates(name), level, self.freedom(name))


def macro_auc(y: ArrayLike, proba: ArrayLike, folds: ArrayLike | None = None) -> float:
    """Return the mean over the findings of the ROC AUC, of those that have images with it and without.

    y (n, L), proba (n, L), folds (n,) as `score_findings`; NaN where there is no such finding.
    """
    labels, chances = _checked(y, proba)
    _, fold = _columns(len(labels), None, folds)
    areas = []
    for k, column in enumerate(labels.T):
        own = column >= 0
        if (column == 1).any() and (column == 0).any():
            areas.append(METRICS["roc_auc"](column[own], two_classes(chances[own, k]), folds=fold[own]))
    return float(np.mean(areas)) if areas else np.nan


def macro_log_loss(y: ArrayLike, proba: ArrayLike) -> float:
    """Return the mean over the findings of the log loss; y (n, L), proba (n, L)."""
    labels, chances = _checked(y, proba)
    known = labels >= 0
    pairs = [(labels[own, k], two_classes(chances[own, k])) for k, own in enumerate(known.T) if own.any()]
    return float(np.mean([METRICS["log_loss"](*pair) for pair in pairs])) if pairs else np.nan


def micro(
    y: ArrayLike,
    proba: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the areas over all pairs of an image and a finding pooled, with intervals by group.

    y (n, L), proba (n, L), groups (n,), folds (n,). Frequent findings weigh most. Raises BadPredictions.
    """
    labels, chances = _checked(y, proba)
    columns = _columns(len(labels), groups, folds)
    known = labels >= 0
    of, fold = (np.broadcast_to(column[:, None], labels.shape)[known] for column in columns)
    return score(labels[known], two_classes(chances[known]), of, folds=fold, only=AREAS, n_bootstrap=0, level=level)


def _checked(y: ArrayLike, proba: ArrayLike) -> tuple[Ints, Floats]:
    labels, chances = np.asarray(y), np.asarray(proba, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != chances.shape or not labels.size:
        raise BadPredictions(f"expected y (n, L) and proba (n, L), got {labels.shape} and {chances.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or not set(np.unique(labels).tolist()) <= {-1, 0, 1}:
        raise BadPredictions(
            f"expected y of 1, 0 and -1 (missing), got {labels.dtype} {np.unique(labels)[:9].tolist()}"
        )
    return labels.astype(np.int64), chances


def _columns(n: int, groups: ArrayLike | None, folds: ArrayLike | None) -> tuple[Ints, Ints]:
    """Return groups and folds as numbers, (n,) each."""
    given = (np.arange(n) if groups is None else groups, np.zeros(n) if folds is None else folds)
    of, fold = (np.unique(np.asarray(column), return_inverse=True)[1].astype(np.int64) for column in given)
    return of, fold


def _counts(column: Ints, groups: Ints) -> bool:
    return all(len(np.unique(groups[column == side])) >= _FEWEST for side in (0, 1))


def _sample(y: Ints, chance: Floats, cells: Ints, folds: Ints, repeats: float) -> Sample:
    """Return one finding's sample, with a group of its own for each fold that a group is in."""
    return replace(make_sample(y, two_classes(chance), cells, folds=folds), repeats=repeats)


def _draws(cells: Ints, n_bootstrap: int, n: int, seed: int) -> Iterator[Floats]:
    """Yield how often each group is drawn, in blocks (b, G): with replacement from all, the same for all findings."""
    random, groups = np.random.default_rng(seed), int(cells.max()) + 1
    rows = max(1, CELLS // n)
    for start in range(0, n_bootstrap, rows):
        yield random.multinomial(groups, np.full(groups, 1 / groups), min(rows, n_bootstrap - start)).astype(np.float64)
