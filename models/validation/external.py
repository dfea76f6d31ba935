"""A frozen model on a labelled set from elsewhere: scores at its own thresholds, calibration, how unlike the set is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import BadDataset, unknown
from features.version import firn_version
from models.folds import grouped_folds
from models.metrics import (
    METRICS,
    BadPredictions,
    Calibration,
    SubgroupTable,
    at_prevalence,
    calibration_line,
    estimated_prevalence,
    predictions_by_group,
    score,
    subgroup_tables,
)
from models.metrics.sample import two_classes
from models.metrics.subgroups import FEWEST
from models.predictor.manifest import Contents
from models.runs.columns import subgroup_columns as columns_with_levels
from models.runs.results import Score, Scores
from models.runs.scores import CALIBRATED, LEVEL, as_dict, number
from models.runs.summary import plural
from models.validation.recalibration import RECALIBRATIONS, crossfitted

Floats = NDArray[np.float64]
SCHEMA = 1
FOLDS = 5
_SOME, _NONE = 5, 0.5  # images of a class that are there, and that an estimate counts as none


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """What a frozen model said of the images of a labelled set, in any order."""

    y: NDArray[np.int64]  # (n,) as the model numbers its classes
    proba: Floats  # (n, K) those that the operating points are thresholds of
    calibrated: Floats  # (n, K) by the model's own calibration; the same where it has none
    groups: NDArray[np.str_]  # (n,)
    distance: Floats  # (n,) from the training images; NaN where the model cannot tell
    outlier: NDArray[np.bool_]  # (n,)
    columns: Mapping[str, NDArray[np.str_]]  # (n,) each, whose words are subgroups
    grouped_by: str  # what a group is; empty where none is known


@dataclass(frozen=True)
class ExternalValidation:
    """What `validation.json` holds. Every score is a mapping with value, low and high; None for what is not known."""

    model: Mapping[str, Any]  # name, identity, data set and calibration of the bundle
    classes: Sequence[str]
    images: Mapping[str, int]  # how many were given, judged (of how many groups), and left out for which reason
    by_class: Mapping[str, Mapping[str, int]]  # class -> images and groups of it
    grouped_by: str
    point: str  # the operating point of `here`; empty for more classes than two
    here: Scores
    recorded: Scores  # the model's own scores on its test images, out of fold where there were none
    recorded_on: str  # "test" or "validation"; empty where the model tells none
    points: Mapping[str, Mapping[str, Any]]  # operating point -> threshold, sensitivity and specificity here, and then
    confusion: Sequence[Sequence[int]]  # images of each true class (rows) decided as each class (columns)
    calibration: Mapping[str, Scores]  # of the frozen model: as it ranks, and by its own calibration
    recalibration: Mapping[str, Mapping[str, Any]]  # fitted on this set
    no_recalibration: str  # why there is none
    prevalence: Mapping[str, Any]  # class shares in training, here, and as estimated without labels
    novelty: Mapping[str, Any] | None  # how unlike the training images these are; None where the model cannot tell
    by_group: Scores | None  # by patient: mean probability of a group's images
    no_by_group: str  # why there is none
    subgroups: Sequence[Mapping[str, Any]]
    remarks: Sequence[str]
    settings: Mapping[str, Any]
    dataset: Mapping[str, Any]
    firn: str

    def to_json(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        return {"schema": SCHEMA, **{field.name: getattr(self, field.name) for field in fields(self)}}


def validated(
    found: LabelledSet,
    contents: Contents,
    *,
    dataset: Mapping[str, Any],
    images: Mapping[str, int],
    training_distances: Floats | None = None,
    remarks: Sequence[str] = (),
    seed: int = 0,
    n_bootstrap: int = 2000,
) -> ExternalValidation:
    """Judge a frozen model by its predictions of a labelled set; nothing of the model is changed by the set.

    `dataset` and `images` say what was judged; `training_distances` are quantiles of the distances of training images.
    Intervals are those of `models.metrics`, by group. Raises BadPredictions where nothing is left to judge.
    """
    judge = _Judge(found, contents, seed, n_bootstrap)
    recorded_on, recorded = _recorded(contents)
    recalibration, why_not = judge.recalibration()
    by_group, not_by_group = judge.by_group()
    return ExternalValidation(
        model=_model(contents),
        classes=list(contents.classes),
        images={**images, "groups": len(np.unique(found.groups))},
        by_class=judge.counts(),
        grouped_by=found.grouped_by,
        point=judge.point,
        here=judge.scores(found.proba),
        recorded=recorded,
        recorded_on=recorded_on,
        points=judge.points(),
        confusion=judge.confusion(),
        calibration=judge.calibration(),
        recalibration=recalibration,
        no_recalibration=why_not,
        prevalence=judge.prevalence(),
        novelty=judge.novelty(training_distances),
        by_group=by_group,
        no_by_group=not_by_group,
        subgroups=judge.subgroups(),
        remarks=[*remarks, *judge.remarks()],
        settings={"level": LEVEL, "seed": seed, "n_bootstrap": n_bootstrap},
        dataset=dict(dataset),
        firn=firn_version(),
    )


class _Judge:
    """The parts of a validation."""

    def __init__(self, found: LabelledSet, contents: Contents, seed: int, n_bootstrap: int) -> None:
        self.found, self.contents, self.binary = found, contents, len(contents.classes) == 2
        self.draws: dict[str, Any] = {"seed": seed, "n_bootstrap": n_bootstrap}
        self.point = next(iter(contents.points), "")
        self.threshold = contents.points[self.point].threshold if self.point else None
        seen = np.unique(found.groups, return_inverse=True)[1] * len(contents.classes) + found.y
        self.groups_of = np.bincount(np.unique(seen) % len(contents.classes), minlength=len(contents.classes))
        self.images_of = np.bincount(found.y, minlength=len(contents.classes))

    def scores(self, proba: Floats, *, threshold: float | None = None, folds: ArrayLike | None = None) -> Scores:
        """Return every metric of probabilities of these images, at the first operating point unless told."""
        at = self.threshold if threshold is None else threshold
        rows = score(self.found.y, proba, self.found.groups, folds=folds, threshold=at, level=LEVEL, **self.draws)
        return {name: as_dict(row) for name, row in rows.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the images and groups of each class."""
        pairs = zip(self.contents.classes, self.images_of.tolist(), self.groups_of.tolist(), strict=True)
        return {name: {"images": images, "groups": groups} for name, images, groups in pairs}

    def points(self) -> dict[str, dict[str, Any]]:
        """Return sensitivity and specificity at each frozen threshold, and those that the bundle tells of then."""
        rows = {}
        for name, point in self.contents.points.items():
            here = self.scores(self.found.proba, threshold=point.threshold)
            sides = ("sensitivity", "specificity")
            then = {side: _score(point.about.get(side)) for side in sides}
            rows[name] = {
                "threshold": point.threshold,
                "here": {side: here[side] for side in sides},
                "recorded": {side: row for side, row in then.items() if row is not None},
            }
        return rows

    def confusion(self) -> list[list[int]]:
        """Return the images of each true class (rows) decided as each class (columns)."""
        k, proba = len(self.contents.classes), self.found.proba
        decided = proba.argmax(axis=1) if self.threshold is None else np.where(proba[:, 1] >= self.threshold, 1, 0)
        counts: list[list[int]] = np.bincount(self.found.y * k + decided, minlength=k * k).reshape(k, k).tolist()
        return counts

    def calibration(self) -> dict[str, Scores]:
        """Return the calibration of the probabilities that rank, and of those after the bundle's own calibration."""
        rows = {"as it ranks": self._trust(self.found.proba)}
        if self.contents.calibration:
            rows[f"by the bundle ({_kind(self.contents.calibration)})"] = self._trust(self.found.calibrated)
        return rows

    def _trust(self, proba: Floats, folds: ArrayLike | None = None) -> Scores:
        """Return slope and intercept of two classes, then the losses of probabilities."""
        scores = self.scores(proba, folds=folds)
        lines: dict[str, Score] = {}
        if self.binary:
            line = calibration_line(self.found.y, proba[:, 1], self.found.groups, folds=folds, level=LEVEL)
            lines = {name: as_dict(interval) for name, interval in line._asdict().items()}
        return lines | {name: scores[name] for name in CALIBRATED}

    def recalibration(self) -> tuple[dict[str, dict[str, Any]], str]:
        """Return each recalibration fitted on this set: its scores where it was cross-fitted, and the fit to take over.

        The scores of each fold of groups are by a fit on the others, so that no image is judged by its own label. The
        prevalence estimate sees no label. The second value says why nothing could be fitted.
        """
        found, rows = self.found, dict[str, dict[str, Any]]()
        shares, estimate = self.prevalence()["training"], self.prevalence()["estimated"]
        if estimate is not None:
            moved = at_prevalence(found.calibrated, *(list(side.values()) for side in (shares, estimate)))
            rows["prevalence"] = {"scores": self._trust(moved), "fit": {"shares": estimate}, "labels": False}
        if (fewest := int(self.groups_of.min())) < 2:
            name = self.contents.classes[int(self.groups_of.argmin())]
            return (
                rows,
                f"{name} has {fewest} {found.grouped_by or 'image'}{'' if fewest == 1 else 's'}; two are needed",
            )
        folds = grouped_folds(found.y, found.groups, FOLDS, seed=self.draws["seed"])
        for name, make in RECALIBRATIONS.items():
            scores = self._trust(crossfitted(make, found.y, found.calibrated, folds), folds)
            fit = make(found.y, found.calibrated)
            rows[name] = {"scores": scores, "fit": {"slope": fit.slope, "intercepts": fit.intercepts}, "labels": True}
        return rows, ""

    def prevalence(self) -> dict[str, Any]:
        """Return the share of each class in training, here, and here as the probabilities alone estimate it."""
        classes, trained = self.contents.classes, _trained_shares(self.contents)
        here = (self.images_of / self.images_of.sum()).tolist()
        shares = {"training": trained, "here": here, "estimated": self._estimated()[0]}
        return {n: None if s is None else dict(zip(classes, s, strict=True)) for n, s in shares.items()}

    def _estimated(self) -> tuple[list[float] | None, str]:
        """Return the class shares as estimated without labels, and why there are none.

        Where probabilities hardly tell the classes apart, the likelihood rises to where one of them is gone.
        """
        if (trained := _trained_shares(self.contents)) is None:
            return None, ""
        shares = estimated_prevalence(self.found.calibrated, trained)
        gone = np.flatnonzero((self.images_of >= _SOME) & (shares * len(self.found.y) < _NONE))
        if not gone.size:
            return shares.tolist(), ""
        return None, (
            f"no update by class shares: estimated without labels there would be no image of class "
            f"{self.contents.classes[gone[0]]}; the probabilities hardly tell the classes of these images apart"
        )

    def novelty(self, training: Floats | None) -> dict[str, Any] | None:
        """Return the share of images flagged as unlike the training images, and both distributions of the distance."""
        values, outliers = self.found.distance, self.contents.outliers
        if outliers is None or np.isnan(values).any():
            return None
        flags = self.found.outlier.astype(np.float64)
        ones, scores = np.ones(len(flags), np.int64), two_classes(flags)
        at = np.linspace(0, 1, 101)
        return {
            "flagged": int(flags.sum()),
            "share": as_dict(score(ones, scores, self.found.groups, level=LEVEL, **self.draws)["accuracy"]),
            "expected": 1 - float(outliers["quantile"]),
            "threshold": float(outliers["threshold"]),
            "quantiles": np.quantile(values, at).tolist(),
            "training_quantiles": None if training is None else training.tolist(),
        }

    def by_group(self) -> tuple[Scores | None, str]:
        """Return the scores by group (patient), of the mean probability of its images, or why there are none."""
        found = self.found
        if len(np.unique(found.groups)) == len(found.groups):
            return None, f"no {found.grouped_by or 'group'} has several images"
        try:
            groups = predictions_by_group(found.y, found.proba, found.groups)
        except BadPredictions:
            return None, f"images of one {found.grouped_by or 'group'} are of several classes"
        rows = score(groups.y, groups.proba, threshold=self.threshold, level=LEVEL, **self.draws)
        return {name: as_dict(row) for name, row in rows.items()}, ""

    def subgroups(self) -> list[dict[str, Any]]:
        """Return the scores by subgroup of each further column, and of the images unlike the training images."""
        columns = dict(self.found.columns)
        if 0 < self.found.outlier.sum() < len(self.found.outlier):
            columns["unlike training"] = np.where(self.found.outlier, "yes", "no")
        found = self.found
        tables = subgroup_tables(
            found.y, found.proba, columns, found.groups, threshold=self.threshold, level=LEVEL, **self.draws
        )
        return [_table_as_dict(table) for table in tables]

    def remarks(self) -> Iterator[str]:
        """Yield what of the classes of these images cannot be judged, or hardly."""
        unit = self.found.grouped_by or "image"
        for k, (name, row) in enumerate(self.counts().items()):
            if not row["images"]:
                yield f"no image is of class {name}: {self._lost(k)}"
            elif row["groups"] < FEWEST:
                yield f"class {name} has {row['groups']} {plural(unit)}, fewer than {FEWEST}: its scores tell little"
        if why_not := self._estimated()[1]:
            yield why_not

    def _lost(self, k: int) -> str:
        if not self.binary:
            return "means over the classes, and ROC AUC, are of the others alone"
        lost, left = ("specificity", "sensitivity") if k == 0 else ("sensitivity", "specificity")
        return f"ROC AUC, {lost} and the calibration slope cannot be had, only {left}"


def subgroup_columns(
    columns: Mapping[str, NDArray[np.str_]], y: NDArray[np.int64], groups: NDArray[np.str_], named: Sequence[str] = ()
) -> dict[str, NDArray[np.str_]]:
    """Return the columns (n,) that make subgroups of images of classes y (n,): those `named`, else all but findings.

    How columns make subgroups is `models.runs.columns`; those of 0 and 1 are findings. Raises UnknownName; BadDataset
    for a named column that makes none.
    """
    for name in named:
        if name not in columns:
            raise unknown("column", name, columns)
    asked = {
        name: columns[name] for name in named or columns if named or not {*columns[name].tolist()} <= {"", "0", "1"}
    }
    found = columns_with_levels(asked, y, groups, {})
    if named and found.passed_over:
        raise BadDataset(f"a column makes no subgroups ({found.passed_over[0]}); leave it away in SUBGROUPS=")
    return {name: levels.words for name, levels in found.levels.items()}


def _table_as_dict(table: SubgroupTable) -> dict[str, Any]:
    """Return a table of subgroups ready for JSON."""
    rows = []
    for row in table.rows:
        line = row.calibration._asdict() if row.calibration else {}
        rows.append(
            {
                "name": row.name,
                "images": row.images,
                "groups": row.groups,
                "few": row.few,
                "scores": {name: as_dict(interval) for name, interval in {**row.scores, **line}.items()},
            }
        )
    tests = {
        name: {"p_value": number(table.p_values[name]), "p_adjusted": number(p)} for name, p in table.p_adjusted.items()
    }
    return {"column": table.column, "left_out": table.left_out, "rows": rows, "tests": tests}


def _kind(calibration: Calibration) -> str:
    return type(calibration).__name__.lower()


# What a bundle tells of its own making is text of strangers: a number is taken where there is one.


def _model(contents: Contents) -> dict[str, Any]:
    """Return what tells the model, as far as its card says it."""
    run, data = (_mapping(contents.card.get(part)) for part in ("run", "data"))
    about = {"identity": contents.identity, "dataset": data.get("dataset"), "labels": run.get("labels")}
    said = {name: value if isinstance(value, str) else "" for name, value in about.items()}
    return {"name": contents.name, **said, "calibration": _kind(contents.calibration) if contents.calibration else ""}


def _recorded(contents: Contents) -> tuple[str, Scores]:
    """Return on which images the bundle's own scores are, and the scores."""
    results = _mapping(contents.card.get("results"))
    for part in ("test", "validation"):
        scores = {name: _score(_mapping(results.get(part)).get(name)) for name in METRICS}
        if known := {name: row for name, row in scores.items() if row is not None}:
            return part, known
    return "", {}


def _score(values: Any) -> Score | None:
    """Return a score with its bounds; None for anything else."""
    row = _mapping(values)
    found = {name: row.get(name) for name in ("value", "low", "high")}
    return found if _is_number(found["value"]) and all(v is None or _is_number(v) for v in found.values()) else None


def _trained_shares(contents: Contents) -> list[float] | None:
    """Return the share of each class among the images that were learned from; None where one is not known or 0."""
    card = contents.card
    cross_validated = _mapping(card.get("run")).get("protocol") == "cv"
    splits = [
        _mapping(row)
        for name, row in _mapping(_mapping(card.get("data")).get("counts")).items()
        if (cross_validated or name != "test")
    ]
    counts = [sum(row[name] for row in splits if _is_number(row.get(name))) for name in contents.classes]
    return [n / sum(counts) for n in counts] if counts and min(counts) > 0 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
