"""The checks of an audit (table CHECKS, one row each), the evidence that they share, and their findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.splits import straddling
from features.errors import BadDataset
from features.inspection.thumbnails import blank
from models.audit.duplicates import Pairs, Step, Thresholds, exact_pairs, linked_groups, near_pairs
from models.audit.label_errors import Opinion, label_errors, predict_out_of_fold
from models.audit.neighbours import Odd, far_out, mean_distances
from models.audit.subject import Subject

_NEIGHBOURS = 10
Rows = NDArray[np.int64]


class Evidence:
    """What the checks share, computed when first asked for; `step` names a step and returns its progress."""

    def __init__(self, subject: Subject, *, seed: int = 0, step: Step = lambda _: lambda done, total: None) -> None:
        self.subject, self.seed, self._step = subject, seed, step

    @cached_property
    def exact(self) -> Pairs:
        """Return the exact duplicates: pairs with the same bytes."""
        return exact_pairs(self.subject)

    @cached_property
    def _near(self) -> tuple[Pairs, Thresholds]:
        return near_pairs(self.subject, seed=self.seed, step=self._step)

    @cached_property
    def near(self) -> Pairs:
        """Return the near-duplicate pairs; none where there are no thumbnails."""
        if self.subject.thumbnails is None:
            return self.exact.take(np.zeros(len(self.exact.first), bool))
        return self._near[0]

    @property
    def thresholds(self) -> Thresholds | None:
        """Return the thresholds of the search for near-duplicates; None where there are no thumbnails."""
        return None if self.subject.thumbnails is None else self._near[1]

    @cached_property
    def pairs(self) -> Pairs:
        """Return all duplicates: the exact ones, then the near ones."""
        a, b = self.exact, self.near
        likeness = np.concatenate([a.likeness, b.likeness])
        return Pairs(np.concatenate([a.first, b.first]), np.concatenate([a.second, b.second]), likeness)

    @cached_property
    def linked(self) -> Rows:
        """Return the linked group of each image, (n,): groups joined by duplicates, over any chain."""
        return linked_groups(self.subject, self.pairs)

    @cached_property
    def leaked(self) -> NDArray[np.bool_]:
        """Return which test images have a duplicate among those that are trained on, (n,)."""
        test = self.subject.splits == "test"
        found = np.zeros(len(test), bool)
        found[self.pairs.second[~test[self.pairs.first] & test[self.pairs.second]]] = True
        return np.asarray(test & np.isin(self.subject.content, self.subject.content[found]))

    @cached_property
    def _nearest(self) -> tuple[NDArray[np.float64], Rows]:
        directions, lengths = self.subject.standardised
        return mean_distances(directions, lengths, self.linked, _NEIGHBOURS, progress=self._step("measure distances"))

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Return out-of-fold probabilities of every image, (n, K). BadDataset where folds cannot be made."""
        self._step("fit the head out of fold")
        return predict_out_of_fold(self.subject.X, self.subject.y, self.linked, seed=self.seed)

    @cached_property
    def opinion(self) -> Opinion:
        """Return the probable label errors. BadDataset where folds cannot be made."""
        return label_errors(self.subject.y, self.probabilities, self._nearest[1])

    @cached_property
    def outliers(self) -> Odd:
        """Return the outliers of each class."""
        return far_out(self.subject.y, self._nearest[0])

    @cached_property
    def blank(self) -> Odd:
        """Return the blank images; none where there are no thumbnails."""
        thumbnails = self.subject.thumbnails
        return Odd(np.empty(0, np.int64), np.empty(0)) if thumbnails is None else Odd(*blank(thumbnails))


Severity = Literal["high", "medium", "low"]
NO_IMAGES = "needs the images, and a pack has none"


class Finding(NamedTuple):
    """A finding: one image, or pair of images, to be looked at by a person."""

    check: str
    severity: Severity
    image: str
    other: str  # empty where there is one image only
    splits: str
    labels: str
    value: str
    advice: str


class Found(NamedTuple):
    """A finding as a check returns it: rows of the subject (-1 for none), or a name; value in words."""

    row: int
    other: int = -1
    value: str = ""
    name: str = ""


@dataclass(frozen=True)
class Check:
    """One row of CHECKS: how findings are made, and how they are titled, ranked and advised on."""

    title: str  # of the summary
    severity: Severity
    advice: str
    find: Callable[[Evidence], Iterable[Found]]
    images: bool = False  # cannot do without the images


def find_all(evidence: Evidence) -> tuple[dict[str, list[Finding]], dict[str, str]]:
    """Return the findings of every check, strongest first, and why the others were left out."""
    found, left_out = {}, {}
    for name, check in CHECKS.items():
        if check.images and evidence.subject.thumbnails is None:
            left_out[name] = NO_IMAGES
            continue
        try:
            found[name] = [_told(evidence, name, check, one) for one in check.find(evidence)]
        except BadDataset as error:
            left_out[name] = str(error)
    return found, left_out


def _told(evidence: Evidence, name: str, check: Check, found: Found) -> Finding:
    subject = evidence.subject
    rows = [row for row in (found.row, found.other) if row >= 0]
    images = [str(subject.ids[row]) for row in rows] or [found.name]
    splits, labels = ([str(of(row)) for row in rows] for of in (subject.splits.__getitem__, _class_of(evidence)))
    other = images[1] if len(images) > 1 else ""
    told_splits, told_labels = (" | ".join(dict.fromkeys(words)) for words in (splits, labels))
    return Finding(name, check.severity, images[0], other, told_splits, told_labels, found.value, check.advice)


def _class_of(evidence: Evidence) -> Callable[[int], str]:
    return lambda row: evidence.subject.classes[evidence.subject.y[row]]


def _across(evidence: Evidence, pairs: Pairs) -> NDArray[np.bool_]:
    return np.asarray(evidence.subject.order[pairs.first] != evidence.subject.order[pairs.second])


def _leaks(pairs_of: Callable[[Evidence], Pairs]) -> Callable[[Evidence], Iterator[Found]]:
    """Return a check that names each image once that a split before its own holds too, with the likest there."""

    def find(evidence: Evidence) -> Iterator[Found]:
        pairs = pairs_of(evidence)
        pairs = pairs.take(_across(evidence, pairs))
        _, once = np.unique(pairs.second, return_index=True)
        for a, b, likeness in zip(*pairs.take(np.sort(once)), strict=True):
            yield Found(int(b), int(a), f"likeness {likeness:.3f}")

    return find


def _repeats(pairs_of: Callable[[Evidence], Pairs]) -> Callable[[Evidence], Iterator[Found]]:
    """Return a check that names the pairs inside one split, those in different groups first."""

    def find(evidence: Evidence) -> Iterator[Found]:
        groups, pairs = evidence.subject.groups, pairs_of(evidence)
        pairs = pairs.take(~_across(evidence, pairs))
        apart = groups[pairs.first] != groups[pairs.second]
        words = f", {evidence.subject.grouped_by}s apart" if evidence.subject.grouped_by else ""
        for i in np.argsort(~apart, kind="stable"):
            value = f"likeness {pairs.likeness[i]:.3f}{words if apart[i] else ''}"
            yield Found(int(pairs.second[i]), int(pairs.first[i]), value)

    return find


def _conflicts(evidence: Evidence) -> Iterator[Found]:
    y = evidence.subject.y
    for a, b, likeness in zip(*evidence.pairs, strict=True):
        if y[a] != y[b]:
            yield Found(int(b), int(a), f"likeness {likeness:.3f}")


def _straddling(evidence: Evidence) -> Iterator[Found]:
    subject = evidence.subject
    for group in straddling(subject.groups, subject.splits) if subject.grouped_by else ():
        rows = np.flatnonzero(subject.groups == group)
        first, last = (int(rows[pick(subject.order[rows])]) for pick in (np.argmin, np.argmax))
        yield Found(last, first, f"{subject.grouped_by} {group}: {len(rows)} images")


def _wrong_labels(evidence: Evidence) -> Iterator[Found]:
    opinion, classes = evidence.opinion, evidence.subject.classes
    for row, suggested, margin in zip(opinion.row, opinion.suggested, opinion.margin, strict=True):
        yield Found(int(row), value=f"looks like {classes[suggested]}, margin {margin:.3f}")


def _odd(odd_of: Callable[[Evidence], Odd], words: str) -> Callable[[Evidence], Iterator[Found]]:
    def find(evidence: Evidence) -> Iterator[Found]:
        for row, value in zip(*odd_of(evidence), strict=True):
            yield Found(int(row), value=words.format(value))

    return find


def _unreadable(evidence: Evidence) -> Iterator[Found]:
    for line in evidence.subject.left_out:
        image, _, why = line.partition(": ")
        yield Found(-1, value=why, name=image)


CHECKS: Mapping[str, Check] = {
    "exact-leak": Check(
        "same bytes in two splits",
        "high",
        "remove it from the later split; a test image that was trained on proves nothing",
        _leaks(lambda evidence: evidence.exact),
    ),
    "near-leak": Check(
        "same image in two splits",
        "high",
        "look at both; if they are one image, remove it from the later split",
        _leaks(lambda evidence: evidence.near),
        images=True,
    ),
    "straddling-group": Check(
        "group in more than one split",
        "high",
        "put all images of the group into one split",
        _straddling,
    ),
    "label-conflict": Check(
        "duplicates with different labels",
        "high",
        "one of the two labels is wrong: decide, and keep one image",
        _conflicts,
    ),
    "exact-repeat": Check(
        "same bytes twice in a split",
        "medium",
        "keep one of the two, or give both the same group",
        _repeats(lambda evidence: evidence.exact),
    ),
    "near-repeat": Check(
        "same image twice in a split",
        "medium",
        "look at both; if they are one image, keep one, or give both the same group",
        _repeats(lambda evidence: evidence.near),
        images=True,
    ),
    "label-error": Check(
        "label probably wrong",
        "medium",
        "have a reader look at the image without seeing the label",
        _wrong_labels,
    ),
    "blank": Check(
        "near-black or near-constant",
        "medium",
        "look at the image; replace or remove it if nothing can be seen",
        _odd(lambda evidence: evidence.blank, "uses {:.0f} of 255 grey levels"),
        images=True,
    ),
    "unreadable": Check(
        "cannot be read",
        "medium",
        "replace the file or take it out of the data set",
        _unreadable,
    ),
    "outlier": Check(
        "unlike all others of its class",
        "low",
        "look whether the image belongs to the set",
        _odd(lambda evidence: evidence.outliers, "{:.1f} robust z"),
    ),
}
