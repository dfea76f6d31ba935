"""Cross-validation of a head: out-of-fold predictions of the training images, then predictions of the test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.reader import subset
from features.errors import BadDataset, FirnError, unknown
from features.views import View
from models.folds import grouped_folds
from models.heads.head import FEWEST_FOLDS, Head, Nested, check_varied
from models.validation.predictions import Predictions

FOLDS = 5


class OutOfTime(Exception):
    """The time limit of a fit passed before all its folds were done."""


@dataclass(frozen=True)
class Protocol:
    """One row of PROTOCOLS: how images are cross-validated, and whether the test split is kept apart."""

    about: str
    repeats: int  # of the cross-validation, each with folds of its own
    tests: bool  # whether the test split is kept apart
    folds: int = FOLDS  # of each repeat
    exact: bool = False  # whether fewer groups of a class than folds are an error, and not fewer folds


PROTOCOLS = {
    "split": Protocol("the publisher's test images, looked at once; choices by five grouped folds", 1, True),
    "cv": Protocol("all images in three times five grouped folds, choices inside each (nested)", 3, False),
}


class Fitted(NamedTuple):
    """A fitted head with its out-of-fold and test predictions."""

    predictions: Predictions  # the rows of all repeats one after the other, then the test images
    head: Head  # fitted on all images to learn from
    seconds: dict[str, float]  # oof, fit, predict


def choose_protocol(name: str, folds: int = 0, repeats: int = 0) -> Protocol:
    """Return a row of PROTOCOLS, with just so many folds and repeats where they are not 0.

    Raises UnknownName, FirnError for a single fold.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    if folds == 1:
        raise FirnError("expected FOLDS= to be 2 or more, for one fold leaves nothing to learn from, got 1")
    row = PROTOCOLS[name]
    return replace(row, repeats=repeats or row.repeats, folds=folds or row.folds, exact=folds > 0)


def columns_of(y: NDArray[np.int64]) -> int:
    """Return how many probabilities an image has: of classes (n,), or of findings (n, L)."""
    return int(y.shape[1]) if y.ndim == 2 else int(y.max()) + 1


def learned(splits: NDArray[np.str_], protocol: Protocol) -> NDArray[np.bool_]:
    """Return which images are learned from, (n,): all but the test split, or all where none is kept apart."""
    return np.asarray((splits != "test") | (not protocol.tests))


def folds_of(
    y: NDArray[np.int64], groups: NDArray[np.str_], protocol: Protocol, *, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Return the fold of each row (n,) in each repeat; folds are numbered on through the repeats.

    Raises BadDataset where a class has a single group.
    """
    drawn = [grouped_folds(y, groups, protocol.folds, seed=seed + 1000 * repeat) for repeat in range(protocol.repeats)]
    return [fold + repeat * (int(fold.max()) + 1) for repeat, fold in enumerate(drawn)]


def fit(
    make: Callable[[], Head],
    views: Sequence[View],
    protocol: Protocol,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    until: float = np.inf,
) -> Fitted:
    """Cross-validate a head, then fit it on all training images and predict the test images.

    `views` is one view, or one for each repeat where the repeats see other features (of the same images). Heads
    choose what they have to choose inside the images that they are given. Raises BadDataset where a class cannot be
    learned, ConstantFeatures where all images have the same features, OutOfTime when `time.monotonic()` passes `until`.
    """
    train = learned(views[0].splits, protocol)
    parts = [view.take(train) for view in views]
    y, groups = parts[0].y, parts[0].groups
    if y.ndim == 1 and len(np.unique(y)) < len(np.unique(views[0].y)):
        raise BadDataset("a class has no training image; give every class images outside the test split")
    check_varied(parts[0].X)
    plan = folds_of(y, groups, protocol, seed=seed)
    total, start = int(plan[-1].max()) + 2, time.perf_counter()
    whole: Head | None = None
    held = np.zeros((len(plan), len(y), columns_of(views[0].y)))
    for repeat, folds in enumerate(plan):
        part = parts[min(repeat, len(parts) - 1)]
        done = _Watch(progress, int(folds.min()), int(folds.max()) + 1, total, until)
        held[repeat], learner = _held_out(make, part, folds, done)
        whole = whole or learner
    middle = time.perf_counter()
    head = whole or make().fit(*_together(parts))
    end = time.perf_counter()
    test = views[0].take(~train)
    tested = head.predict_proba(test.X) if len(test.y) else held[0][:0]
    progress(total, total)
    seconds = {"oof": middle - start, "fit": end - middle, "predict": time.perf_counter() - end}
    return Fitted(arranged(parts[0], plan, held, test, tested), head, seconds)


@dataclass(frozen=True)
class _Watch:
    """Shows progress within one repeat and looks at the clock."""

    progress: Callable[[int, int], None]
    first: int
    last: int
    total: int
    until: float

    def __call__(self, done: int, steps: int) -> None:
        """Show that `done` of `steps` are done. Raises OutOfTime."""
        self.progress(self.first + (self.last - self.first) * done // steps, self.total)
        if time.monotonic() > self.until:
            raise OutOfTime


def _held_out(
    make: Callable[[], Head], part: View, folds: NDArray[np.int64], watch: _Watch
) -> tuple[NDArray[np.float64], Head | None]:
    """Return out-of-fold probabilities (n, K), and the head fitted on all rows where it goes through all at once."""
    learner = make()
    if isinstance(learner, Nested):
        nested = learner.fit_folds(part.X, part.y, folds, watch)
        if nested is not None:
            return own_fold(nested, folds), learner
    names = np.unique(folds).tolist()
    held = np.zeros((len(folds), columns_of(part.y)))
    for done, fold in enumerate(names, start=1):
        own = folds == fold
        learner = make().fit(subset(part.X, ~own), part.y[~own], part.groups[~own])
        held[own] = learner.predict_proba(subset(part.X, own))
        watch(done, len(names))
    return held, None


def own_fold(found: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probabilities without the fold of each row, (n, K), of those without each fold (F, n, K)."""
    return found[np.unique(folds, return_inverse=True)[1], np.arange(len(folds))]


def without_pairs(
    make: Callable[[], Head], part: View, folds: NDArray[np.int64], progress: Callable[[int, int], None]
) -> NDArray[np.float64] | None:
    """Return for each fold f what heads that have not seen it say of the other rows, out of fold too, (F, n, K).

    Row i of [f] is by a head fitted without fold f and the fold of i; rows of fold f itself mean nothing. None where
    the folds are fewer than four, or leave nothing of a class without two of them.
    """
    names, classes = np.unique(folds), int(part.y.max()) + 1
    pairs = list(combinations(range(len(names)), 2))
    kept = [~np.isin(folds, names[list(pair)]) for pair in pairs]
    if len(names) < FEWEST_FOLDS or any(len(np.unique(part.y[rows])) < classes for rows in kept):
        return None
    learner = make()
    if isinstance(learner, Nested):
        return learner.fit_folds(part.X, part.y, folds, progress)
    found = np.zeros((len(names), len(folds), classes))
    for done, ((i, j), rows) in enumerate(zip(pairs, kept, strict=True), start=1):
        head = make().fit(subset(part.X, rows), part.y[rows], part.groups[rows])
        for judge, judged in ((i, j), (j, i)):
            own = folds == names[judged]
            found[judge, own] = head.predict_proba(subset(part.X, own))
        progress(done, len(pairs))
    return found


def _together(parts: Sequence[View]) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Return X, y and groups of all repeats one below the other; of a single view as they are."""
    if len(parts) == 1:
        return parts[0].X, parts[0].y, parts[0].groups
    X, y, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("X", "y", "groups"))
    return X, y, groups


def arranged(
    dev: View, plan: Sequence[NDArray[np.int64]], held: NDArray[np.float64], test: View, tested: NDArray[np.float64]
) -> Predictions:
    """Return predictions sorted by id, the images of each repeat below those of the one before."""
    order, last = np.argsort(dev.ids, kind="stable"), np.argsort(test.ids, kind="stable")
    ids, groups, y = (
        np.concatenate([*[getattr(dev, name)[order]] * len(plan), getattr(test, name)[last]])
        for name in ("ids", "groups", "y")
    )
    fold = np.concatenate([*(folds[order] for folds in plan), np.full(len(last), -1)])
    return Predictions(ids, groups, y, np.concatenate([*held[:, order], tested[last]]), fold)
