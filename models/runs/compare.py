"""From runs to results: scores with intervals, a choice made by validation, and who is not distinguishable from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.datasets.columns import Columns
from features.errors import CacheError
from features.options import make_command, typed
from models.metrics import (
    METRICS,
    Metric,
    SimultaneousTest,
    claim,
    compare_pairs,
    compare_with,
    score_of_the_chosen,
)
from models.metrics.findings import macro_auc, macro_log_loss
from models.runs.examination import NO_COLUMNS, USUAL, ExaminationOptions, examine, examined
from models.runs.headline import headline
from models.runs.record import Run
from models.runs.results import UNDECIDED, ComparisonResult, RunResult, Verdict, ranked, stamped
from models.runs.scores import LEVEL, NO_METRICS, as_dict, by_class, calibrations, grades, number, scored, shown
from models.runs.summary import commands, protocol
from models.validation.predictions import Predictions

CHOICE = "roc_auc"  # the metric by which validation chooses


def area_of(held: Predictions) -> float:
    """Return the ROC AUC by which out-of-fold predictions are chosen; of several findings the mean over them."""
    if held.several:
        return macro_auc(held.y, held.proba, held.fold)
    return METRICS[CHOICE](held.y, held.proba, folds=held.fold)


def loss_of(held: Predictions) -> float:
    """Return the log loss, of several findings the mean over them."""
    return macro_log_loss(held.y, held.proba) if held.several else METRICS["log_loss"](held.y, held.proba)


def in_order(runs: Sequence[Run]) -> list[int]:
    """Return the places of runs, best validation first: by ROC AUC, of equals by log loss, then by name.

    Networks that are validated on some folds alone stand where their difference from the best of the other runs on the
    images of those folds puts them, so that they gain nothing from folds of easy images.
    """
    held = [run.predictions.part(test=False) for run in runs]
    scores = [_validated(part) for part in held]
    counts = [len(np.unique(part.ids)) for part in held]
    best = max(range(len(runs)), key=lambda i: (counts[i], *scores[i]))
    for i in np.flatnonzero(np.array(counts) < counts[best]).tolist():
        common = held[best].take(np.isin(held[best].ids, held[i].ids))
        scores[i] = scores[best] + (scores[i] - _validated(common))
    return sorted(range(len(runs)), key=lambda i: (*-scores[i], runs[i].name))


def _validated(held: Predictions) -> NDArray[np.float64]:
    """Return area and negative log loss, (2,): the larger, the better; what the images cannot tell is worst."""
    return np.nan_to_num([area_of(held), -loss_of(held)], nan=-1e9)


def choose(runs: Sequence[Run]) -> Run:
    """Return the run of best validation of one or more."""
    return runs[in_order(runs)[0]]


ALPHA = 0.05  # of the corrected tests
UNTESTED = "cannot be tested"  # the verdict where there is no p-value, which leaves nothing to decide


def against_the_first(
    parts: Sequence[Predictions], *, seed: int, n_bootstrap: int, margin: float = 0.0
) -> list[Verdict | None]:
    """Compare the first predictions with each of the others in simultaneous paired tests; None for the first.

    Out-of-fold predictions chose the first themselves, which the tests allow for. A `margin` above 0 is what
    equivalence is claimed against.
    """
    first = parts[0]
    tests = compare_with(
        first.y,
        [part.proba for part in parts],
        first.groups,
        folds=np.stack([part.fold for part in parts]),
        chosen_here=bool((first.fold >= 0).all()),
        n_bootstrap=n_bootstrap,
        level=LEVEL,
        seed=seed,
    )
    return [None, *(verdict_of(test, margin) for test in tests)]


def against_each_other(
    pairs: Sequence[tuple[Predictions, Predictions]], *, seed: int, n_bootstrap: int
) -> list[Verdict]:
    """Compare the second of each pair of predictions with the first, in simultaneous paired tests."""
    first, draws = pairs[0][0], {"seed": seed, "n_bootstrap": n_bootstrap}
    probas = [(a.proba, b.proba) for a, b in pairs]
    return list(map(verdict_of, compare_pairs(first.y, probas, first.groups, folds=first.fold, level=LEVEL, **draws)))


def verdict_of(test: SimultaneousTest, margin: float = 0.0) -> Verdict:
    """Return the difference and the verdict of one of several tests, held against a margin of equivalence if given."""
    distinguishable = bool(test.p_adjusted < ALPHA)  # NaN, where the images cannot tell, is not
    side = "higher" if test.difference.value > 0 else "lower"
    return Verdict(
        as_dict(test.difference),
        number(test.p_value),
        number(test.p_adjusted),
        distinguishable,
        side if distinguishable else UNTESTED if math.isnan(test.p_adjusted) else UNDECIDED,
        claim(test.difference, margin) if margin else "",
    )


TELLING = {"entry": "{}", "seed": "seed {}"}  # fields that tell apart runs of the same name


def compare_runs(
    runs: Sequence[Run],
    how: ExaminationOptions = USUAL,
    columns: Columns = NO_COLUMNS,
    *,
    seed: int = 0,
    n_bootstrap: int = 2000,
    margin: float = 0.0,
    title: str = "",
) -> ComparisonResult:
    """Return the results of several runs on one data set, best validation first.

    The run of highest out-of-fold ROC AUC is chosen; on the test images (out of fold where there are none) every
    other one is compared with it by DeLong's covariance (two classes) or that of the bootstrap over groups (more), in
    simultaneous tests; without test images its score is also corrected for having been chosen. Decisions are
    the most probable class, or with two classes the out-of-fold Youden threshold. With a `margin` above 0 runs whose
    interval lies within it are called equivalent; `title` is the page's. The chosen run is looked at more closely, as
    `examine` says. Raises CacheError for no runs, and for runs that did not see the same images.
    """
    names = run_names(runs)
    check_same_images(runs, names)
    draws: dict[str, Any] = {"seed": seed, "n_bootstrap": n_bootstrap}
    also = grades(runs[0].record.classes) if how.ordered else NO_METRICS
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = list(threads.map(partial(_row, also=also, **draws), runs, names))
    order = in_order(runs)
    verdicts = against_the_first([shown(runs[i]) for i in order], margin=margin, **draws)
    best = runs[order[0]]
    result = ComparisonResult(
        ranked([rows[i] for i in order], verdicts),
        images_of(best),
        by_class(best, rows[order[0]].confusion, **draws),
        _corrected([runs[i] for i in order], rows[order[0]], seed),
        calibrations(best, **draws),
        examine(best, how, columns, judged=len(runs), **draws),
        {"choice": CHOICE, "level": LEVEL, "alpha": ALPHA, "margin": margin or None, "title": title, **draws},
        {name: {"label": m.label, "direction": m.direction} for name, m in {**METRICS, **also}.items()},
    )
    asked = examined(how) | ({"margin": typed(margin)} if margin else {}) | ({"title": title} if title else {})
    again = commands([row.record for row in result.runs], seed, asked)
    return stamped(result, commands=again, summary=headline(result), protocol=protocol(result))


def _corrected(runs: Sequence[Run], chosen: RunResult, seed: int) -> dict[str, float | None] | None:
    """Return the chosen run's score corrected for the choice, where no test images say what it is worth."""
    if chosen.test is not None or len(runs) < 2:
        return None
    parts = [shown(run) for run in runs]
    probas, folds = [part.proba for part in parts], np.stack([part.fold for part in parts])
    found = score_of_the_chosen(parts[0].y, probas, parts[0].groups, folds=folds, metric=CHOICE, seed=seed)
    return as_dict(found)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a different name for each run: what tells it from runs of the same name is added in brackets."""
    names = [run.name for run in runs]
    for fact, words in TELLING.items():
        names = _told_apart(names, [words.format(getattr(run.record, fact)) for run in runs])
    return _told_apart(names, [f"#{i}" for i in range(1, len(names) + 1)])


def runs_by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by those names, in their order."""
    return dict(zip(run_names(runs), runs, strict=True))


def _told_apart(names: list[str], tells: list[str]) -> list[str]:
    """Return the names, each with its tell where others of that name have another."""
    known: dict[str, set[str]] = {}
    for name, tell in zip(names, tells, strict=True):
        known.setdefault(name, set()).add(tell)
    return [f"{name} [{tell}]" if len(known[name]) > 1 else name for name, tell in zip(names, tells, strict=True)]


def check_same_images(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise CacheError unless there are runs, and all saw the same images with the same labels, splits and groups."""
    if not runs:
        raise CacheError("there is no run to compare; run: make train-heads")
    first = runs[0]
    for run, name in zip(runs, names, strict=True):
        if not _same_images(first, run):
            backbones = " ".join(dict.fromkeys(r.record.backbone for r in (first, run)))
            again = make_command("extract train-heads", first.record.data, backbone=backbones)
            raise CacheError(
                f"{names[0]} and {name} were trained on different images, labels or splits and cannot be compared; "
                f"run: {again}"
            )
        if not (run.predictions.fold >= 0).any():
            again = make_command("train-heads", run.record.data)
            raise CacheError(f"{name} has no out-of-fold predictions; run: {again}")


def _same_images(first: Run, run: Run) -> bool:
    facts = all(
        getattr(first.record, key) == getattr(run.record, key) for key in ("manifest", "classes", "labels", "protocol")
    )
    ours, others = first.predictions, run.predictions
    if first.record.partial or run.record.partial:  # of some folds nothing is predicted
        ours, others = (a.take((a.fold < 0) | np.isin(a.ids, b.ids)) for a, b in ((ours, others), (others, ours)))
    return facts and all(
        np.array_equal(a, b) for a, b in ((ours.ids, others.ids), (ours.y, others.y), (ours.fold < 0, others.fold < 0))
    )


def images_of(run: Run) -> dict[str, int]:
    """Return how many images validation and test are of, and of how many groups those are that scores are of.

    And of how many groups there are images in both, if any: `learned_too`.
    """
    test, groups = int((run.predictions.fold < 0).sum()), len(np.unique(shown(run).groups))
    tested, learned = (run.predictions.part(test=which).groups for which in (True, False))
    both = len(np.intersect1d(tested, learned)) if run.record.grouped_by else 0
    counts = {"validation": (len(run.predictions.fold) - test) // run.record.repeats, "test": test, "groups": groups}
    return counts | ({"learned_too": both} if both else {})


def _row(run: Run, name: str, *, also: Mapping[str, Metric], seed: int, n_bootstrap: int) -> RunResult:
    """Return all that can be said of one run by itself."""
    found = scored(run, also, seed=seed, n_bootstrap=n_bootstrap)
    return RunResult(name, run.record, run.images_per_second, **vars(found))
