"""Reliability diagram, calibration slope and intercept; temperature scaling, Platt and isotonic recalibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import Interval, effective_count, quantile, strata, wilson
from models.metrics.registry import BINS, SMALLEST, bin_of
from models.metrics.sample import BadPredictions, Floats, Ints, Sample, effective_groups, make_sample, two_classes

_NEWTON, _CONVERGED, _SINGULAR = 50, 1e-10, 1e14  # steps; of the coefficients; condition of the curvature
_HALVED, _ROUNDING = 60, 1e-12  # times at most that a step is halved; share of a loss that is no rise


class Reliability(NamedTuple):
    """The reliability diagram: predicted and observed frequency of each bin that holds images, with intervals."""

    predicted: Floats  # (b,) mean score
    observed: Floats  # (b,) share of positives
    low: Floats  # (b,)
    high: Floats  # (b,)
    images: Ints  # (b,)


def reliability_curve(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    prevalence: float | None = None,
    bins: int = BINS,
    level: float = 0.95,
) -> Reliability:
    """Return the reliability diagram of score (n,) in 0 to 1 against y (n,) of 0 and 1, in `bins` equal parts.

    The gaps |predicted - observed| weighted by images are the metric `ece`. DeGroot & Fienberg 1983. Bounds are
    Wilson's for the effective number of images, by groups (n,); see `effective_count`. With a `prevalence`, for which
    the scores hold, the classes count as if it were the share of class 1; that moves the odds of every bin by the same
    factor, and the bounds with them. Raises BadPredictions.
    """
    sample = make_sample(y, two_classes(score), groups)
    column = sample.proba[:, 1]
    place = bin_of(column, bins)
    images = np.bincount(place, minlength=bins)
    used = images > 0
    predicted, hits = (np.bincount(place, row, minlength=bins)[used] / images[used] for row in (column, sample.y))
    share = np.zeros(bins)
    share[used] = hits
    held, gaps = (sample.tally(place, bins, of)[:, used] for of in (None, sample.y - share[place]))
    count = effective_count(held, gaps, hits * (1 - hits), level, sample)
    low, high = wilson(hits * count, count, level)
    share_here = float(sample.y.mean())
    if prevalence is None or share_here in (0.0, 1.0):
        return Reliability(predicted, hits, low, high, images[used])
    weight = np.where(sample.y == 1, prevalence / share_here, (1 - prevalence) / (1 - share_here))
    summed, total = (np.bincount(place, row, minlength=bins)[used] for row in (weight * column, weight))
    factor = prevalence / (1 - prevalence) * (1 - share_here) / share_here
    hits, low, high = (factor * share / (1 - share + factor * share) for share in (hits, low, high))
    return Reliability(summed / total, hits, low, high, images[used])


class CalibrationLine(NamedTuple):
    """Logistic regression of the class on the log odds that a model gives out; 1 and 0 are perfect calibration."""

    slope: Interval  # below 1: probabilities too extreme
    intercept: Interval  # with the slope held at 1, calibration in the large; below 0: probabilities too high


def calibration_line(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    level: float = 0.95,
) -> CalibrationLine:
    """Return the calibration slope and intercept, with intervals by group.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,), folds (n,). Cox 1958; Van Calster et al. 2019 (BMC Medicine
    17:230). Bounds are Student's t with the variance of the jackknife over groups: for the slope within the strata of
    the bootstrap; for the intercept, which is about how many are positive, the mix of classes varies too. NaN with
    fewer than two groups of a class, or where the classes separate and no slope is finite. Raises BadPredictions.
    """
    sample = make_sample(y, two_classes(score), groups, folds=folds).by_fold()
    odds = np.diff(_log(sample.proba), axis=1)[:, 0]
    ones = np.ones((len(odds), 1))
    slope = _coefficient(sample, np.column_stack([odds, ones]), np.zeros(len(odds)), strata(sample), level)
    return CalibrationLine(slope, _coefficient(sample, ones, odds, [np.arange(sample.n_groups)], level))


def _coefficient(sample: Sample, design: Floats, offset: Floats, drawn: Sequence[Ints], level: float) -> Interval:
    """Return the first coefficient of a logistic regression of y on a design (n, p), with its interval by group.

    `drawn` are the strata from which the groups were drawn.
    """
    freedom = effective_groups(*sample.independent[:-1]) - 1
    beta = _logistic(sample.y, design, offset)
    if beta is None or not freedom > 0 or (sample.groups_by_class == 0).any():
        return Interval(np.nan, np.nan, np.nan)
    fitted = _sigmoid(design @ beta + offset)
    variance = _jackknife(sample, design, sample.y - fitted, fitted * (1 - fitted), drawn)
    half = quantile(level, freedom) * float(np.sqrt(sample.inflation * variance))
    return Interval(float(beta[0]), float(beta[0]) - half, float(beta[0]) + half)


def _jackknife(sample: Sample, design: Floats, residual: Floats, curvature: Floats, drawn: Sequence[Ints]) -> float:
    """Return the variance of the first coefficient by leaving out one group at a time, in one step of Newton's method.

    Bell & McCaffrey 2002 (Survey Methodology 28:169, CR3): each group's leverage, which the cluster-robust variance of
    Liang & Zeger 1986 leaves out, counts.
    """
    one, p = np.zeros_like(sample.y), design.shape[1]
    scores = np.hstack([sample.tally(one, 1, column * residual) for column in design.T])
    own = np.stack([sample.tally(one, 1, a * b * curvature)[:, 0] for a in design.T for b in design.T], axis=1)
    rest = (own.sum(axis=0) - own).reshape(-1, p, p)
    moved = np.linalg.solve(rest, scores[:, :, None])[:, 0, 0]
    variance = 0.0
    for members in drawn:
        away = moved[members] - moved[members].mean()
        n = len(members) / sample.repeats
        variance += float(away @ away) * (n - 1) / n
    return variance


def _logistic(y: Ints, design: Floats, offset: Floats) -> Floats | None:
    """Return the maximum likelihood coefficients (p,) by Newton's method; None where they are not finite.

    Steps are halved until they pay (Armijo's rule): from probabilities that are nearly all wrong a whole one leads to
    where everything is flat.
    """
    beta = np.zeros(design.shape[1])
    for _ in range(_NEWTON):
        fitted = _sigmoid(design @ beta + offset)
        curvature = (design.T * (fitted * (1 - fitted))) @ design
        if not np.linalg.cond(curvature) < _SINGULAR:
            return None
        slope = design.T @ (y - fitted)
        step = np.linalg.solve(curvature, slope)
        if np.abs(step).max() < _CONVERGED * (1 + np.abs(beta + step).max()):
            return np.asarray(beta + step)
        loss, gain = _loss(y, design @ beta + offset), float(slope @ step)
        most = ((share, loss * (1 + _ROUNDING) - share * gain / 4) for share in 0.5 ** np.arange(_HALVED))
        paying = (share for share, bound in most if _loss(y, design @ (beta + share * step) + offset) <= bound)
        beta = beta + next(paying, 0.0) * step
    return None


def _loss(y: Ints, logits: Floats) -> float:
    return float((np.logaddexp(0, logits) - y * logits).sum())


def _sigmoid(logits: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(logits))


class Calibration(Protocol):
    """A recalibration of class probabilities, fitted on out-of-fold predictions of the training set."""

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K)."""

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""


@dataclass(frozen=True)
class Temperature:
    """Temperature scaling, softmax(log proba / temperature), which changes no decision (Guo et al. 2017)."""

    temperature: float

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K)."""
        return _softmax(_log(proba) / self.temperature)

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""
        return _to_json(self)


@dataclass(frozen=True)
class Platt:
    """Platt scaling: softmax(slope * log proba + intercept of the class), a sigmoid of the log odds for two."""

    slope: float
    intercepts: tuple[float, ...]  # (K,), the first is 0

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K)."""
        return _softmax(self.slope * _log(proba) + np.asarray(self.intercepts))

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""
        return _to_json(self)


@dataclass(frozen=True)
class Isotonic:
    """Isotonic regression of each class's probability, linear between knots, renormalised to sum to 1."""

    knots: tuple[tuple[float, ...], ...]  # per class (two classes: class 1 only) probabilities before ...
    levels: tuple[tuple[float, ...], ...]  # ... and after

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K); a row that maps to zeros stays as it was."""
        given = np.asarray(proba, dtype=np.float64)
        columns = given[:, -len(self.knots) :].T
        mapped = [np.interp(*row) for row in zip(columns, self.knots, self.levels, strict=True)]
        if len(mapped) == 1:
            return two_classes(mapped[0])
        stacked = np.stack(mapped, axis=1)
        total = stacked.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(stacked, total, out=given.copy(), where=total > 0))

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""
        return _to_json(self)


def fit_temperature(y: ArrayLike, proba: ArrayLike) -> Temperature:
    """Fit temperature scaling by least log loss, within 1/100 to 100; y (n,), proba (n, K). Guo et al. 2017."""
    from scipy.optimize import minimize_scalar

    sample = make_sample(y, proba)
    logs = _log(sample.proba)

    def loss(log_temperature: float) -> float:
        scaled = _log_softmax(logs / np.exp(log_temperature))
        return -float(scaled[np.arange(len(sample.y)), sample.y].mean())

    best = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded", options={"xatol": 1e-6})
    return Temperature(float(np.exp(best.x)))


def fit_platt(y: ArrayLike, proba: ArrayLike) -> Platt:
    """Fit Platt scaling by maximum likelihood; y (n,), proba (n, K).

    Platt 1999 on the log odds, with his smoothed targets, which keep the fit finite where the classes separate; for
    K > 2 one slope and an intercept a class (bias-corrected temperature scaling; Alexandari et al. 2020). Where the
    likelihood asks for a negative slope the probabilities stay as they are.
    """
    from scipy.optimize import minimize

    sample = make_sample(y, proba)
    logs, k = _log(sample.proba), sample.n_classes
    counts = np.bincount(sample.y, minlength=k)
    targets = ((counts[:, None] * np.eye(k) + 1) / (counts[:, None] + k))[sample.y]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = _log_softmax(parameters[0] * logs + np.append(0.0, parameters[1:]))
        gap = (np.exp(scaled) - targets) / len(logs)
        return -float((targets * scaled).sum() / len(logs)), np.append((gap * logs).sum(), gap[:, 1:].sum(axis=0))

    fitted = minimize(loss, np.append(1.0, np.zeros(k - 1)), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    if fitted[0] < 0:  # it would turn the ranking round
        return Platt(1.0, (0.0,) * k)
    return Platt(float(fitted[0]), (0.0, *map(float, fitted[1:])))


def fit_isotonic(y: ArrayLike, proba: ArrayLike) -> Isotonic:
    """Fit isotonic regression, each class against the rest; y (n,), proba (n, K). Zadrozny & Elkan 2002.

    It needs a thousand images or so, makes ties, and gives out probabilities of exactly 0 and 1.
    """
    from scipy.optimize import isotonic_regression

    sample = make_sample(y, proba)
    knots, levels = [], []
    for k in [1] if sample.binary else range(sample.n_classes):
        before, place, count = np.unique(sample.proba[:, k], return_inverse=True, return_counts=True)
        share = np.bincount(place, sample.y == k) / count
        after = isotonic_regression(share, weights=count.astype(np.float64)).x
        kept = _corners(after)
        knots.append(tuple(before[kept].tolist()))
        levels.append(tuple(np.clip(after[kept], 0, 1).tolist()))
    return Isotonic(tuple(knots), tuple(levels))


CALIBRATIONS: dict[str, Callable[[ArrayLike, ArrayLike], Calibration]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}


KINDS: dict[str, Callable[..., Calibration]] = {kind.__name__.lower(): kind for kind in (Temperature, Platt, Isotonic)}


def calibration_from_json(text: str) -> Calibration:
    """Return the calibration that `to_json` wrote; raises BadPredictions for any other text."""
    try:
        row = json.loads(text)
        return KINDS[row.pop("kind")](**{name: _frozen(value) for name, value in row.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadPredictions(f"expected a calibration in JSON, got {text[:60]!r}") from error


def _to_json(calibration: Temperature | Platt | Isotonic) -> str:
    return json.dumps({"kind": type(calibration).__name__.lower(), **asdict(calibration)})


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _corners(level: Floats) -> Ints:
    """Return where a step function (m,) has the ends of its flat parts; the rest is interpolated anyway."""
    rises = np.diff(level) > 0
    return np.flatnonzero(np.append(True, rises) | np.append(rises, True))


def _log(proba: ArrayLike) -> Floats:
    return np.log(np.clip(np.asarray(proba, dtype=np.float64), SMALLEST, 1))


def _log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    total: Floats = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def _softmax(logits: Floats) -> Floats:
    return np.exp(_log_softmax(logits))
