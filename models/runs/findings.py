"""Runs of several findings per image: ranked by the mean area of the findings, with tests on it and on each of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import Interval, PairedTest, delong_test, holm
from models.metrics.findings import AREAS, FindingScores, Means, macro_log_loss, micro, score_findings
from models.metrics.significance import Areas, compare_areas
from models.runs.compare import ALPHA, check_same_images, images_of, in_order, run_names, verdict_of
from models.runs.findings_headline import headline
from models.runs.findings_results import SHOWN, FindingResult, FindingsResult, FindingsRunResult
from models.runs.record import Run
from models.runs.results import Score, Verdict
from models.runs.scores import LEVEL, as_dict, fixed_thresholds, number, other_folds, shown
from models.runs.summary import commands, plural
from models.validation.predictions import Predictions


def compare_findings(
    runs: Sequence[Run], *, seed: int = 0, n_bootstrap: int = 2000, pooled: bool = False
) -> FindingsResult:
    """Return the results of several runs of the same findings, best validation first.

    The run of highest mean out-of-fold ROC AUC (macro) is chosen; on the test images (out of fold where there are none)
    every other one is compared with it in simultaneous tests on the mean, by the covariance of a bootstrap in which all
    runs and findings see the same draws of groups, and on each finding by DeLong's test, Holm-corrected over the
    findings. `pooled` adds areas over all findings at once (micro). Raises CacheError for no runs, and for runs that
    did not see the same images.
    """
    names = run_names(runs)
    check_same_images(runs, names)
    draws: dict[str, Any] = {"seed": seed, "n_bootstrap": n_bootstrap}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = list(threads.map(partial(score_run, pooled=pooled, **draws), runs, names))
    order = in_order(runs)
    parts = [shown(runs[i]) for i in order]
    verdicts = [None, *_verdicts(parts, **draws)]
    first = parts[0]
    ranked = [
        replace(rows[i], validation_rank=rank, against_chosen=verdict, findings=_tested(rows[i].findings, part, first))
        for rank, (i, part, verdict) in enumerate(zip(order, parts, verdicts, strict=True), start=1)
    ]
    best = runs[order[0]]
    result = FindingsResult(
        tuple(ranked),
        images_of(best),
        together(first.y),
        {"choice": "macro roc_auc", "level": LEVEL, "alpha": ALPHA, **draws},
        commands([row.record for row in ranked], seed, {"micro": "1"} if pooled else {}),
    )
    return replace(result, summary=headline(result), protocol=_protocol(result))


def together(y: NDArray[np.int64]) -> list[list[int]]:
    """Return the images with both findings, (L, L), from labels (n, L); with the finding, on the diagonal."""
    present = (y == 1).astype(np.int64)
    counts: list[list[int]] = (present.T @ present).tolist()
    return counts


def score_run(run: Run, name: str, *, seed: int, n_bootstrap: int, pooled: bool = False) -> FindingsRunResult:
    """Return all that can be said of one run by itself."""
    held, tested = (run.predictions.part(test=test) for test in (False, True))
    part, classes = shown(run), run.record.classes
    points = [fixed_thresholds(held.finding(k)) for k in range(len(classes))]
    cuts: list[Any] = [own.get("youden") for own in points]
    if not len(tested.y):
        cuts = [_of_other_folds(held, k, run.record.folds) for k in range(len(classes))]
    how: dict[str, Any] = {"level": LEVEL, "seed": seed, "n_bootstrap": n_bootstrap}
    found = score_findings(part.y, part.proba, part.groups, folds=part.fold, thresholds=cuts, **how)
    before = found
    if len(tested.y):
        before = score_findings(held.y, held.proba, held.groups, folds=held.fold, **how)
    findings = [_finding(classes[k], part.y[:, k], found.each[k], points[k]) for k in range(len(classes))]
    return FindingsRunResult(
        name,
        run.record,
        run.images_per_second,
        _means(before),
        _means(found) if len(tested.y) else None,
        number(macro_log_loss(held.y, held.proba)),
        tuple(findings),
        tuple(name for name, own in zip(classes, found.counted, strict=True) if own),
        _pooled(part) if pooled else None,
    )


def _pooled(part: Predictions) -> dict[str, Score]:
    found = micro(part.y, part.proba, part.groups, folds=part.fold, level=LEVEL)
    return {name: as_dict(score) for name, score in found.items()}


def _means(found: FindingScores) -> dict[str, Score]:
    return {name: as_dict(found.macro[name]) for name in AREAS}


def _finding(
    name: str, y: NDArray[np.int64], found: Mapping[str, Interval], points: Mapping[str, float]
) -> FindingResult:
    nothing: Score = dict.fromkeys(("value", "low", "high"))
    scores = {metric: as_dict(found[metric]) if found else nothing for metric in SHOWN}
    return FindingResult(name, int((y >= 0).sum()), int((y == 1).sum()), scores, points)


def _of_other_folds(held: Predictions, k: int, folds: int) -> NDArray[np.float64]:
    """Return for each image (n,) the Youden threshold of finding k that the other folds of its repeat choose."""
    cuts = np.full(len(held.y), 0.5)
    for own, others in other_folds(held, folds):
        cuts[own] = fixed_thresholds(others.finding(k)).get("youden", 0.5)
    return cuts


def _verdicts(parts: Sequence[Predictions], *, seed: int, n_bootstrap: int) -> list[Verdict]:
    """Compare the mean area of the first predictions with that of each of the others, in simultaneous tests."""
    first = parts[0]
    means = [Means.of(p.y, p.proba, p.groups, p.fold, n_bootstrap=n_bootstrap, seed=seed) for p in parts]
    areas, evidence = np.array([own.mean("roc_auc") for own in means]), means[0].freedom("roc_auc")
    covariance = np.full((len(parts), len(parts)), np.nan)
    if n_bootstrap > 1 and means[0].counted.any():
        covariance = np.atleast_2d(np.cov(np.stack([own.replicates("roc_auc") for own in means])))
        covariance *= evidence / max(evidence - 1, 1e-9)
    others = [(j, 0) for j in range(1, len(parts))]
    family = list(combinations(range(len(parts)), 2)) if (first.fold >= 0).all() else others
    tests = compare_areas(Areas(areas, covariance, evidence, means[0].groups), others, family, LEVEL, seed)
    return [verdict_of(test) for test in tests]


def _tested(rows: Sequence[FindingResult], part: Predictions, chosen: Predictions) -> tuple[FindingResult, ...]:
    """Return each finding with DeLong's test against the chosen run, Holm-corrected over the findings."""
    if part is chosen:
        return tuple(rows)
    tests = [_paired(part.finding(k), chosen.finding(k)) for k in range(len(rows))]
    adjusted = holm([test.p_value for test in tests]).tolist()
    return tuple(
        replace(
            row,
            against_chosen={
                "difference": number(test.difference.value),
                "p_value": number(test.p_value),
                "p_adjusted": number(p),
            },
        )
        for row, test, p in zip(rows, tests, adjusted, strict=True)
    )


def _paired(own: Predictions, chosen: Predictions) -> PairedTest:
    """Test the difference own - chosen in the ROC AUC of one finding, on the same images."""
    if not len(own.y):
        return PairedTest(Interval(math.nan, math.nan, math.nan), math.nan)
    pair = own.proba[:, 1], chosen.proba[:, 1]
    folds = np.stack([own.fold, chosen.fold])
    return delong_test(own.y, *pair, own.groups, folds=folds, level=LEVEL)


def _protocol(results: FindingsResult) -> list[str]:
    """Return in plain sentences how the numbers were made."""
    data, unit = results.dataset, results.dataset.grouped_by or "image"
    again = f", {data.repeats} times over with other folds" if data.repeats > 1 else ""
    left = [name for name in data.classes if name not in results.chosen.counted]
    rare = f"; too rare there to count in it: {', '.join(left)}" if left else ""
    where = "test images" if results.tested else "images left out"
    draws = f"{results.settings['n_bootstrap']:,} bootstrap draws of {plural(unit)}"
    return [
        f"Each head was trained {data.folds} times, each time on all but one of {data.folds} folds, with each finding "
        f"present and absent in the folds alike and no {unit} in two of them{again}. An image without the label of a "
        "finding has no part in that finding.",
        "The run of the highest mean validation ROC AUC over the findings (macro) was chosen.",
        "Decisions are made for each finding, from the threshold of highest sensitivity + specificity (Youden) up; it "
        "comes from out-of-fold predictions.",
        f"Intervals of a mean come from {draws}, the same for all findings and runs, on the {where}{rare}; those of a "
        f"finding's ROC AUC are DeLong's, by {unit}.",
        "Differences of the mean are tested together, with simultaneous intervals; those of each finding by DeLong's "
        "test, Holm-corrected over the findings of a run.",
    ]
