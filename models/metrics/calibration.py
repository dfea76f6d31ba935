"""Do probabilities mean what they say, and maps that mend them where they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import wilson
from models.metrics.registry import BINS, SMALLEST, bin_of
from models.metrics.sample import BadPredictions, Floats, Ints, make_sample


class Reliability(NamedTuple):
    """The bins that hold images: what was predicted and what happened, with Wilson's interval."""

    predicted: Floats  # (b,) mean score
    observed: Floats  # (b,) share of positives
    low: Floats  # (b,)
    high: Floats  # (b,)
    images: Ints  # (b,)


def reliability_curve(y: ArrayLike, score: ArrayLike, bins: int = BINS, *, level: float = 0.95) -> Reliability:
    """Return the reliability diagram of score (n,) in 0 to 1 against y (n,) of 0 and 1, in `bins` equal parts.

    The gaps |predicted - observed| weighted by images are the metric `ece`. DeGroot & Fienberg 1983. Bounds take
    images as independent. Raises BadPredictions.
    """
    column = np.asarray(score, dtype=np.float64)
    sample = make_sample(y, np.stack([1 - column, column], axis=1))
    place = bin_of(column, bins)
    images = np.bincount(place, minlength=bins)
    used = images > 0
    count = images[used].astype(np.float64)
    predicted, hits = (np.bincount(place, row, minlength=bins)[used].astype(np.float64) for row in (column, sample.y))
    low, high = wilson(hits, count, level)
    return Reliability(predicted / count, hits / count, low, high, images[used])


class Calibration(Protocol):
    """A map from probabilities to better calibrated ones, fitted on out-of-fold predictions of the training set."""

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K)."""

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""


@dataclass(frozen=True)
class Temperature:
    """softmax(log proba / temperature): one number, which never changes the decision (Guo et al. 2017)."""

    temperature: float

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K)."""
        return _softmax(_log(proba) / self.temperature)

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""
        return _to_json(self)


@dataclass(frozen=True)
class Platt:
    """softmax(slope * log proba + intercept of the class); with two classes Platt's sigmoid of the log odds."""

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
    """A rising function of each class's probability, straight between knots, then made to sum to 1."""

    knots: tuple[tuple[float, ...], ...]  # per class (two classes: class 1 only) probabilities before ...
    levels: tuple[tuple[float, ...], ...]  # ... and after

    def __call__(self, proba: ArrayLike) -> Floats:
        """Return calibrated probabilities (n, K) for proba (n, K); a row that maps to zeros stays as it was."""
        given = np.asarray(proba, dtype=np.float64)
        columns = given[:, -len(self.knots) :].T
        mapped = [np.interp(*row) for row in zip(columns, self.knots, self.levels, strict=True)]
        if len(mapped) == 1:
            return np.stack([1 - mapped[0], mapped[0]], axis=1)
        stacked = np.stack(mapped, axis=1)
        total = stacked.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(stacked, total, out=given.copy(), where=total > 0))

    def to_json(self) -> str:
        """Return the text that `calibration_from_json` reads."""
        return _to_json(self)


def fit_temperature(y: ArrayLike, proba: ArrayLike) -> Temperature:
    """Fit the temperature of least log loss, within 1/100 to 100; y (n,), proba (n, K). Guo et al. 2017."""
    from scipy.optimize import minimize_scalar

    sample = make_sample(y, proba)
    logs = _log(sample.proba)

    def loss(log_temperature: float) -> float:
        scaled = _log_softmax(logs / np.exp(log_temperature))
        return -float(scaled[np.arange(len(sample.y)), sample.y].mean())

    best = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded", options={"xatol": 1e-6})
    return Temperature(float(np.exp(best.x)))


def fit_platt(y: ArrayLike, proba: ArrayLike) -> Platt:
    """Fit slope and intercepts by maximum likelihood; y (n,), proba (n, K).

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
    """Fit rising functions by least squares, each class against the rest; y (n,), proba (n, K). Zadrozny & Elkan 2002.

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
