"""Test ROC AUC with and without leaked test images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.audit.subject import Subject
from models.heads import make_head
from models.metrics import Interval, score

_BOOTSTRAP = 1000


class Leakage(NamedTuple):
    """Test ROC AUC of the logistic head, on all test images and on those that are not leaked.

    Leaked are the images that the training images hold a duplicate of, and those of a group that straddles the split.
    """

    everything: Interval
    clean: Interval
    images: int
    leaked: int


def measure_leakage(subject: Subject, leaked: NDArray[np.bool_], *, seed: int = 0) -> Leakage | None:
    """Return the test ROC AUC of a logistic head with and without leaked images; None where a class is missing.

    `leaked` (n,) marks the test images of which the training images hold a duplicate. Intervals by group, 95 %.
    """
    test = subject.splits == "test"
    if len(np.unique(subject.y[~test])) < len(subject.classes) or not test.any():
        return None
    head = make_head("logistic", seed=seed).fit(subject.X[~test], subject.y[~test], subject.groups[~test])
    proba = head.predict_proba(subject.X[test])
    y, groups = subject.y[test], subject.groups[test]
    kept = ~(leaked[test] | np.isin(groups, subject.groups[~test]))

    def area(at: NDArray[np.bool_]) -> Interval:
        if not at.any():
            return Interval(np.nan, np.nan, np.nan)
        return score(y[at], proba[at], groups[at], n_bootstrap=_BOOTSTRAP, seed=seed)["roc_auc"]

    everything = area(np.ones(len(y), bool))
    clean = everything if kept.all() else area(kept)
    return Leakage(everything, clean, len(y), int((~kept).sum()))
