"""What is said of the chosen run alone: subgroups, scores by patient, prevalence, rates, the reach of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.datasets.columns import Columns
from features.errors import FirnError, unknown
from features.options import option
from models.metrics import (
    AGGREGATES,
    Subgroup,
    SubgroupTable,
    at_prevalence,
    estimated_prevalence,
    net_benefit,
    predictions_by_group,
    rates,
    subgroup,
    subgroup_tables,
)
from models.metrics.sample import make_sample
from models.metrics.sample_size import FEWEST_OF_CLASS, WIDTH, validation_size
from models.metrics.subgroups import FEWEST
from models.runs.columns import Levels, bins_in, subgroup_columns
from models.runs.record import Run
from models.runs.results import Examination
from models.runs.scores import (
    LEVEL,
    applied_thresholds,
    as_dict,
    calibrated,
    fixed_thresholds,
    line_of,
    number,
    scored,
    shown,
)
from models.runs.summary import plural
from models.validation.predictions import Predictions

Floats = NDArray[np.float64]
NO_COLUMNS = Columns((), {})
ESTIMATED = "estimated"  # as PREVALENCE=: what the probabilities themselves say
RATES = (0.9, 0.95)  # specificity, and sensitivity, at which the other is told
BENEFITS = (0.05, 0.1, 0.2, 0.3, 0.5)  # threshold probabilities whose net benefit is told
MUCH = 1.5  # ratio of the odds of two prevalences that are said to differ
MANY = 20  # runs judged by the same test images, from which on this is said
CALIBRATED_BY = "platt"  # before probabilities follow another prevalence


@dataclass(frozen=True)
class ExaminationOptions:
    """How the chosen run is looked at more closely."""

    aggregate: str = option("mean", "How images make a patient (group): mean, maximum or noisy-or of probabilities.")
    prevalence: str = option("", "Share of the positive class to go by (of more classes, of each), or estimated.")
    bins: str = option("", "Edges of columns of numbers for the subgroups, such as age:18,65; empty chooses.")
    columns: str = option("", "A table with a column of image paths, whose other columns make subgroups too.")
    ordered: bool = option(False, "Classes are grades, such as 0 to 4: kappa and mean absolute error of every run.")

    def __post_init__(self) -> None:
        """Refuse what is in no table and no number, before any work."""
        if self.aggregate not in AGGREGATES:
            raise unknown("aggregate", self.aggregate, AGGREGATES)
        bins_in(self.bins)
        if self.prevalence not in ("", ESTIMATED):
            shares_in(self.prevalence)


USUAL = ExaminationOptions()


def examined(how: ExaminationOptions) -> dict[str, str | bool]:
    """Return what was asked besides what is usual, by name."""
    return {name: value for name, value in vars(how).items() if value != getattr(USUAL, name)}


def shares_in(text: str) -> Floats:
    """Return the class shares (K,) in "0.2" (of the second of two classes) or "0.5,0.3,0.2". Raises FirnError."""
    try:
        given = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        given = np.empty(0)
    shares = np.append(1 - given, given) if len(given) == 1 else given
    if len(shares) < 2 or not ((shares > 0) & (shares < 1)).all() or abs(shares.sum() - 1) > 1e-6:
        raise FirnError(
            "expected PREVALENCE= to be a number between 0 and 1, a share for each class (together 1), or "
            f"{ESTIMATED}, got {text!r}"
        )
    return shares


def stated_shares(text: str, proba: Floats, trained: Floats) -> Floats | None:
    """Return the class shares (K,) that PREVALENCE= means, None without one.

    `proba` (n, K) are calibrated probabilities for the class shares `trained` (K,). Raises FirnError.
    """
    if not text:
        return None
    shares = estimated_prevalence(proba, trained) if text == ESTIMATED else shares_in(text)
    if len(shares) != len(trained):
        raise FirnError(f"PREVALENCE={text} is of {len(shares)} classes, and there are {len(trained)}")
    return shares


def examine(
    run: Run,
    how: ExaminationOptions = USUAL,
    columns: Columns = NO_COLUMNS,
    *,
    judged: int = 1,
    seed: int = 0,
    n_bootstrap: int = 2000,
) -> Examination:
    """Return what is said of the chosen run alone, on test images or out of fold.

    `columns` are further ones of these images, `judged` is the number of runs that were scored on these images. Raises
    FirnError for options that do not go with the classes or the columns.
    """
    draws = {"seed": seed, "n_bootstrap": n_bootstrap}
    part = shown(run)
    words, passed_over = _levels(part, columns, how)
    everyone, tables = _subgroups(run, part, words, **draws)
    prevalence = _prevalence(run, part, how)
    counts, by_group = _counts(run), _by_group(run, how, **draws)
    return Examination(
        vars(how).copy(),
        counts,
        everyone,
        tables,
        [*passed_over, *columns.remarks],
        by_group,
        prevalence,
        _rates(part),
        [*_reach(run, everyone, judged), *_mixed_remark(run, by_group), *_prevalence_remark(run, prevalence)],
    )


def _levels(part: Predictions, columns: Columns, how: ExaminationOptions) -> tuple[dict[str, Levels], Sequence[str]]:
    """Return the subgroups of the images that are shown, one word a prediction."""
    images, first, place = np.unique(part.ids, return_index=True, return_inverse=True)
    row = {image: at for at, image in enumerate(columns.ids)}
    at = np.array([row[image] for image in images.tolist()], np.int64) if columns.values else first
    values = {name: np.asarray(column)[at] for name, column in columns.values.items()}
    found = subgroup_columns(values, part.y[first], part.groups[first], bins_in(how.bins))
    return {name: one._replace(words=one.words[place]) for name, one in found.levels.items()}, found.passed_over


def _subgroups(
    run: Run, part: Predictions, levels: Mapping[str, Levels], *, seed: int, n_bootstrap: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the row of all images, and of each column its rows and tests, ready for JSON."""
    threshold = applied_thresholds(run).get("youden")
    words = {name: one.words for name, one in levels.items()}
    draws: dict[str, Any] = {"level": LEVEL, "seed": seed, "n_bootstrap": n_bootstrap}
    whole = make_sample(part.y, part.proba, part.groups, folds=part.fold, threshold=threshold)
    everyone = subgroup("all images", whole, np.full(len(part.y), True), **draws)
    tables = subgroup_tables(part.y, part.proba, words, part.groups, folds=part.fold, threshold=threshold, **draws)
    return _row(everyone), [_table(table, levels[table.column].order) for table in tables]


def _row(found: Subgroup) -> dict[str, Any]:
    line = found.calibration._asdict() if found.calibration else {}
    return {
        "name": found.name,
        "images": list(found.images),
        "groups": list(found.groups),
        "few": found.few,
        **{name: as_dict(interval) for name, interval in found.scores.items()},
        **{f"calibration_{name}": as_dict(interval) for name, interval in line.items()},
    }


def _table(table: SubgroupTable, order: Sequence[str]) -> dict[str, Any]:
    tests = {
        name: {"p_value": number(table.p_values[name]), "p_adjusted": number(table.p_adjusted[name])}
        for name in table.p_values
    }
    rows = sorted(table.rows, key=lambda row: order.index(row.name))
    return {"column": table.column, "rows": list(map(_row, rows)), "left_out": table.left_out, "tests": tests}


def _counts(run: Run) -> list[dict[str, Any]]:
    """Return the images and groups of each class that were learned from, and that the scores are of."""
    held, part = run.predictions.part(test=False), shown(run)
    counts = []
    for k, name in enumerate(run.record.classes):
        own = {"learned": held.take(held.y == k), "scored": part.take(part.y == k)}
        columns = {"images": "ids", "groups": "groups"}
        found = {w: {n: len(np.unique(getattr(p, c))) for n, c in columns.items()} for w, p in own.items()}
        counts.append({"name": name, **found})
    return counts


def by_group(predictions: Predictions, how: str) -> tuple[Predictions, int]:
    """Return the predictions of groups (patients), a row for each in each fold, and how many are of mixed class.

    Raises BadPredictions.
    """
    names, codes = np.unique(predictions.groups, return_inverse=True)
    key = (predictions.fold + 1) * len(names) + codes
    found = predictions_by_group(predictions.y, predictions.proba, key, how)
    own, fold = names[found.groups % len(names)], found.groups // len(names) - 1
    order = np.argsort(own, kind="stable")
    return Predictions(own[order], own[order], found.y[order], found.proba[order], fold[order]), found.mixed


def grouped_run(run: Run, how: str) -> tuple[Run, int] | None:
    """Return a run as its predictions by group, and how many scored groups are of mixed class.

    None where every group has one image, or where none is left of one class.
    """
    seen = run.predictions
    if len(np.unique(seen.groups)) == len(np.unique(seen.ids)):
        return None
    grouped, _ = by_group(seen, how)
    mixed = by_group(shown(run), how)[1] // (1 if (shown(run).fold < 0).any() else run.record.repeats)
    found = replace(run, predictions=grouped)
    kept = all(len(grouped.part(test=test).y) for test in {False, bool((seen.fold < 0).any())})
    return (found, mixed) if kept else None


def _by_group(run: Run, how: ExaminationOptions, *, seed: int, n_bootstrap: int) -> dict[str, Any] | None:
    """Return the scores by group beside those by image, at thresholds that out-of-fold predictions by group choose."""
    if (found := grouped_run(run, how.aggregate)) is None:
        return None
    grouped, mixed = found
    scores = scored(grouped, seed=seed, n_bootstrap=n_bootstrap)
    part = shown(grouped)
    return {
        "aggregate": how.aggregate,
        "groups": [len(np.unique(part.groups[part.y == k])) for k in range(part.proba.shape[1])],
        "mixed": mixed,
        "scores": scores.test or scores.validation,
        "thresholds": scores.thresholds,
        "confusion": scores.confusion,
    }


def points_by_group(run: Run) -> dict[str, dict[str, float]]:
    """Return the thresholds that out-of-fold predictions by group choose, for each row of AGGREGATES.

    {aggregate: {rule: threshold}}; empty for more than two classes, and where every group has one image.
    """
    if run.record.positive is None or grouped_run(run, "mean") is None:
        return {}
    held = run.predictions.part(test=False)
    return {how: fixed_thresholds(by_group(held, how)[0]) for how in AGGREGATES}


def _mixed_remark(run: Run, found: Mapping[str, Any] | None) -> Iterator[str]:
    if found and found["mixed"]:
        unit = run.record.grouped_by or "group"
        of = f"{found['mixed']:,} {plural(unit) if found['mixed'] > 1 else unit} with images of several classes"
        rule = f"counted as “{run.record.positive}”" if run.record.positive else "left out of the scores"
        yield f"By {unit}: {of} {'are' if found['mixed'] > 1 else 'is'} {rule}."


def trained_shares(run: Run) -> Floats:
    """Return the share of each class among the images that were learned from, (K,)."""
    held = run.predictions.part(test=False)
    return np.bincount(held.y, minlength=len(run.record.classes)) / len(held.y)


def _prevalence(run: Run, part: Predictions, how: ExaminationOptions) -> dict[str, Any]:
    """Return the class shares of training and scored images, and what holds at the shares that were asked for."""
    trained, here = trained_shares(run), np.bincount(part.y, minlength=len(run.record.classes)) / len(part.y)
    proba = calibrated(run, CALIBRATED_BY)
    known = bool((trained > 0).all())
    shares = {
        "trained": trained.tolist(),
        "scored": here.tolist(),
        "estimated": estimated_prevalence(proba, trained).tolist() if known else None,
        "stated": None,
        "line": {},
        "net_benefit": [],
    }
    stated = stated_shares(how.prevalence, proba, trained) if known else None
    if run.record.positive is None:
        if stated is not None:
            raise FirnError(
                f"PREVALENCE={how.prevalence} of compare and report is for two classes, and there are {len(trained)}; "
                "make predict takes a share for each"
            )
        return shares
    adjusted = part.proba if stated is None else at_prevalence(proba, trained, stated)
    here_now = part if stated is None else part._replace(proba=at_prevalence(proba, trained, here))
    return shares | {
        "stated": None if stated is None else stated.tolist(),
        "line": {} if stated is None else line_of(here_now),
        "net_benefit": _benefits(run, part._replace(proba=adjusted), stated),
    }


def at_stated(run: Run, examination: Examination) -> tuple[Predictions, float | None]:
    """Return the predictions that are shown, calibrated for the prevalence that was stated, and that prevalence.

    As they are, and None, where none was stated.
    """
    part, stated = shown(run), examination.prevalence["stated"]
    if stated is None:
        return part, None
    proba = at_prevalence(calibrated(run, CALIBRATED_BY), examination.prevalence["trained"], stated)
    return part._replace(proba=proba), stated[1]


def first_repeat(run: Run, part: Predictions) -> Predictions:
    """Return predictions with each image once: of the first repeat of a repeated cross-validation."""
    return part.take(part.fold < run.record.folds)


def _benefits(run: Run, part: Predictions, stated: Floats | None) -> list[dict[str, Any]]:
    """Return the net benefit at BENEFITS, of the model with its interval and of treating all."""
    once = first_repeat(run, part)
    found = net_benefit(
        once.y,
        once.proba[:, 1],
        BENEFITS,
        once.groups,
        folds=once.fold,
        prevalence=None if stated is None else float(stated[1]),
        level=LEVEL,
    )
    return [
        {"threshold": t, "value": number(value), "low": number(low), "high": number(high), "treat_all": number(every)}
        for t, value, every, low, high in zip(*(column.tolist() for column in found), strict=True)
    ]


def _prevalence_remark(run: Run, found: Mapping[str, Any]) -> Iterator[str]:
    """Say where training and scored images differ much in their classes."""
    pairs = zip(run.record.classes, found["trained"], found["scored"], strict=True)
    apart = [f"“{name}” {a:.2f} and {b:.2f}" for name, a, b in pairs if _odds_apart(a, b) >= MUCH]
    if apart and (run.predictions.fold < 0).any():
        told = "; ".join(apart[-1:] if run.record.positive else apart)
        yield (
            f"Training and test images differ in their shares of classes ({told}): probabilities, accuracy, PPV and "
            "calibration hold for the mix that they are told of; PREVALENCE= states another."
        )


def _odds_apart(a: float, b: float) -> float:
    """Return the ratio of the odds of two shares, at least 1."""
    if not (0 < a < 1 and 0 < b < 1):
        return 1.0 if a == b else np.inf
    ratio = a / (1 - a) / (b / (1 - b))
    return max(ratio, 1 / ratio)


def _rates(part: Predictions) -> list[dict[str, Any]]:
    """Return sensitivity at each specificity of RATES, the reverse, and the partial area; nothing for more classes."""
    if part.proba.shape[1] != 2:
        return []
    out: dict[str, Any] = {"folds": part.fold, "level": LEVEL}
    found = [rates(part.y, part.proba[:, 1], part.groups, specificity=at, sensitivity=at, **out) for at in RATES]
    return [
        {"at": at, **{name: as_dict(interval) for name, interval in row._asdict().items()}}
        for at, row in zip(RATES, found, strict=True)
    ]


def _reach(run: Run, everyone: Mapping[str, Any], judged: int) -> Iterator[str]:
    """Say how many groups of each class the scores rest on, how many it would take, and how often they have judged."""
    unit, record = run.record.grouped_by or "image", run.record
    held = [f"{n:,} of “{name}”" for n, name in zip(everyone["groups"], record.classes, strict=True)]
    scarce, tested = min(everyone["groups"]), (run.predictions.fold < 0).any()
    few = f"Small {'test set' if tested else 'data set'}: all figures may change with other {plural(unit)}. "
    verdict = "less than" if scarce < FEWEST_OF_CLASS else "at least"
    words = f"The scores rest on {plural(unit)}: {', '.join(held)}; that is {verdict} the {FEWEST_OF_CLASS} of each "
    yield few * (scarce < FEWEST_OF_CLASS) + (
        f"{words}class that a validation asks for (Collins et al. 2016).{_sizes(run, everyone)}"
    )
    if judged > MANY and tested:
        yield (
            f"These test images have judged {judged:,} runs: the best of so many on them is partly the luckiest. "
            "Whoever picks by them, and not by validation, needs new images to say how good the pick is."
        )
    if scarce < FEWEST:
        yield f"Fewer than {FEWEST} {plural(unit)} of a class: intervals are wide, and hold less exactly."


def _sizes(run: Run, everyone: Mapping[str, Any]) -> str:
    """Return what a validation takes by Riley et al. 2021, of two classes."""
    area = everyone["roc_auc"]["value"]
    if run.record.positive is None or area is None:
        return ""
    images = everyone["images"]
    size, unit = validation_size(images[1] / sum(images), area), run.record.grouped_by or "image"
    return (
        f" For this AUC and mix, about {size.roc_auc:,} {plural(unit)} give its interval a width of {WIDTH:g}, and "
        f"{size.calibration:,} the ratio of observed to expected to within a fifth (Riley et al. 2021)."
    )
