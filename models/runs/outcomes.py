"""Which images to look at: the most confident ones that a run got right and wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics import operating_points
from models.runs.record import Run
from models.runs.scores import shown

# name, true class, class that it was called; the positive class of two is 1
OUTCOMES = (("true positives", 1, 1), ("false positives", 0, 1), ("false negatives", 1, 0), ("true negatives", 0, 0))


class Judged(NamedTuple):
    """Each image once, sorted by id, with the decision on it."""

    ids: NDArray[np.str_]  # (n,)
    y: NDArray[np.int64]  # (n,)
    proba: NDArray[np.float64]  # (n, K), the mean over the repeats of a cross-validation
    called: NDArray[np.int64]  # (n,)
    threshold: float | None  # of class 1 of two
    seen: bool  # whether the model that is kept was fitted on these very images


class Outcome(NamedTuple):
    """One line of the sheet."""

    name: str
    words: str  # what it is and how many images there are of it
    at: list[int]  # places in Judged, the most confident first


def judged(run: Run, finding: int | None = None) -> Judged:
    """Return the test images with the decisions of a run; without test images all, as predicted out of fold.

    A decision is the most probable class, or with two classes the out-of-fold Youden threshold. Of several findings
    those on one of them, by its place, as of two classes, for the images that have its label.
    """
    part, held = shown(run), run.predictions.part(test=False)
    if finding is not None:
        part, held = part.finding(finding), held.finding(finding)
    ids, first, place = np.unique(part.ids, return_index=True, return_inverse=True)
    proba = np.zeros((len(ids), part.proba.shape[1]))
    np.add.at(proba, place, part.proba)
    proba /= np.bincount(place)[:, None]
    seen, threshold, called = bool((part.fold >= 0).any()), None, proba.argmax(axis=1)
    if proba.shape[1] == 2:
        found = operating_points(held.y, held.proba[:, 1])["youden"]
        threshold = 0.5 if math.isnan(found) else found
        called = (proba[:, 1] >= threshold).astype(np.int64)
    return Judged(ids, part.y[first], proba, called, threshold, seen)


def outcomes(found: Judged, classes: Sequence[str], most: int) -> list[Outcome]:
    """Return at most `most` images for each of the four outcomes; for more classes for each class.

    There half of them (rounded up) rightly called so, then half wrongly.
    """
    lines = []
    if len(classes) == 2:
        for name, true, called in OUTCOMES:
            at, n = _of(found, true, called, most)
            lines.append(Outcome(name, f"{name}: {n:,} ({classes[true]}, called {classes[called]})", at))
        return lines
    for k, name in enumerate(classes):
        right, n = _of(found, k, k, most - most // 2)
        wrong, m = _of(found, None, k, most // 2)
        lines.append(Outcome(name, f"called {name}: {n:,} rightly, {m:,} wrongly", right + wrong))
    return lines


def of_finding(found: Judged, name: str, most: int) -> Outcome:
    """Return at most `most` images of a finding: a third rightly called so, then missed ones, then false alarms."""
    (right, n), (missed, m), (wrong, k) = (_of(found, *pair, most) for pair in ((1, 1), (1, 0), (0, 1)))
    few, least = (most + 1) // 3, most // 3
    words = f"{name}: {n:,} found, {m:,} missed, {k:,} called so wrongly"
    return Outcome(name, words, right[: most - few - least] + missed[:few] + wrong[:least])


def errors(found: Judged, classes: Sequence[str], most: int) -> list[Outcome]:
    """Return at most `most` errors, most confident first; of two classes false positives and negatives apart."""
    if len(classes) == 2:
        return [line for line in outcomes(found, classes, most // 2) if line.name.startswith("false")]
    wrong = np.flatnonzero(found.y != found.called)
    order = np.argsort(-found.proba[wrong, found.called[wrong]], kind="stable")
    words = f"errors: {len(wrong):,} of {len(found.y):,} images"
    return [Outcome("errors", words, wrong[order][:most].tolist())]


def origin(found: Judged) -> str:
    """Say whose images these are: whether the model behind the maps has seen them."""
    if found.seen:
        return (
            "There are no test images: decisions are out of fold, but the model behind the maps was fitted on all "
            "images and HAS SEEN THESE."
        )
    return "Test images, which the model has never seen."


def _of(found: Judged, true: int | None, called: int, most: int) -> tuple[list[int], int]:
    """Return the most confident images of a true class (None: any other) called so, and how many there are."""
    own = found.y != called if true is None else found.y == true
    at = np.flatnonzero(own & (found.called == called))
    order = np.argsort(-found.proba[at, called], kind="stable")
    return at[order][:most].tolist(), len(at)


def asked_of(called: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return the weights of the logits whose map is shown, (n, K): the evidence for a class against the others.

    With two classes the log odds of class 1, whatever was called; else the called class against the mean of all.
    """
    if classes == 2:
        return np.tile([-1.0, 1.0], (len(called), 1))
    return np.asarray(np.eye(classes)[called] - 1 / classes)


class Part(NamedTuple):
    """Images to look at that are judged alike: of a run, or of one of its several findings."""

    found: Judged
    classes: tuple[str, ...]
    lines: list[Outcome]
    finding: int | None = None

    @property
    def at(self) -> NDArray[np.intp]:
        """Return the places of the images in `found`, line after line, (m,)."""
        return np.array([place for line in self.lines for place in line.at], dtype=np.intp)

    @property
    def asked(self) -> NDArray[np.float64]:
        """Return which sum of logits is shown for each image, (m, K); of findings (m, 1), the log odds of this one."""
        if self.finding is not None:
            return np.ones((len(self.at), 1))
        return asked_of(self.found.called[self.at], len(self.classes))


def parts_of(run: Run, lines: Callable[[Judged, Sequence[str], int], list[Outcome]], most: int) -> list[Part]:
    """Return at most `most` images of each outcome of a run by `lines`, or of each of its findings."""
    classes = run.record.classes
    if not run.record.several:
        found = judged(run)
        return [Part(found, classes, lines(found, classes, most))]
    each = [judged(run, k) for k in range(len(classes))]
    return [
        Part(found, (f"no {name}", name), [of_finding(found, name, most)], k)
        for k, (name, found) in enumerate(zip(classes, each, strict=True))
    ]


def asked_in(parts: Sequence[Part], classes: int) -> NDArray[np.float64]:
    """Return which sum of logits is shown for each image of all parts, (m, K), K classes or findings."""
    return np.concatenate([_in_place(part.asked, part.finding, classes, 0.0) for part in parts])


def predicted_in(parts: Sequence[Part], run: Run) -> NDArray[np.float64] | None:
    """Return the probabilities that a run gave the images of all parts, (m, K), NaN for findings that are not shown.

    None where the model that is kept was fitted on these images.
    """
    rows = []
    for part in parts:
        opinion = judged(run, part.finding)
        if opinion.seen:
            return None
        there = opinion.proba[np.searchsorted(opinion.ids, part.found.ids[part.at])]
        own = there if part.finding is None else there[:, 1:]
        rows.append(_in_place(own, part.finding, len(run.record.classes), np.nan))
    return np.concatenate(rows)


def _in_place(
    columns: NDArray[np.float64], finding: int | None, findings: int, elsewhere: float
) -> NDArray[np.float64]:
    """Return columns (m, K) as they are, or that of one finding (m, 1) among all, (m, L)."""
    if finding is None:
        return columns
    wide = np.full((len(columns), findings), elsewhere)
    wide[:, [finding]] = columns
    return wide
