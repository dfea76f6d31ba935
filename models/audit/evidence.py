"""What the checks draw on, each made when a check first asks for it and then kept."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.audit.duplicates import Pairs, Step, Thresholds, bundles, exact_pairs, near_pairs
from models.audit.label_errors import Opinion, label_errors, predict_out_of_fold
from models.audit.neighbours import mean_distances
from models.audit.outliers import Odd, blank, far_out
from models.audit.subject import Subject

__all__ = ["Evidence"]

_NEIGHBOURS = 10
Rows = NDArray[np.int64]


class Evidence:
    """Lazy and remembered; `step` gives a function (done, total) that shows how far a named step is."""

    def __init__(self, subject: Subject, *, seed: int = 0, step: Step = lambda _: lambda done, total: None) -> None:
        self.subject, self.seed, self._step = subject, seed, step

    @cached_property
    def exact(self) -> Pairs:
        """Return the pairs with the same bytes."""
        return exact_pairs(self.subject)

    @cached_property
    def _near(self) -> tuple[Pairs, Thresholds]:
        return near_pairs(self.subject, seed=self.seed, step=self._step)

    @cached_property
    def near(self) -> Pairs:
        """Return the pairs that show the same picture; none where there are no pictures to look at."""
        if self.subject.thumbnails is None:
            return self.exact.take(np.zeros(len(self.exact.first), bool))
        return self._near[0]

    @property
    def thresholds(self) -> Thresholds | None:
        """Return what near-duplicates were sought by; None where there are no pictures."""
        return None if self.subject.thumbnails is None else self._near[1]

    @cached_property
    def pairs(self) -> Pairs:
        """Return all duplicates: the exact ones, then the near ones."""
        a, b = self.exact, self.near
        likeness = np.concatenate([a.likeness, b.likeness])
        return Pairs(np.concatenate([a.first, b.first]), np.concatenate([a.second, b.second]), likeness)

    @cached_property
    def bundles(self) -> Rows:
        """Return a number for each picture, (n,), equal where a group or a duplicate holds them together."""
        return bundles(self.subject, self.pairs)

    @cached_property
    def leaked(self) -> NDArray[np.bool_]:
        """Return which test pictures have a duplicate among those that are trained on, (n,)."""
        test = self.subject.splits == "test"
        found = np.zeros(len(test), bool)
        found[self.pairs.second[~test[self.pairs.first] & test[self.pairs.second]]] = True
        return np.asarray(test & np.isin(self.subject.content, self.subject.content[found]))

    @cached_property
    def _nearest(self) -> tuple[NDArray[np.float64], Rows]:
        directions, lengths = self.subject.standardised
        return mean_distances(directions, lengths, self.bundles, _NEIGHBOURS, progress=self._step("measure distances"))

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Return out-of-fold probabilities of every picture, (n, K). BadDataset where folds cannot be made."""
        self._step("fit the head out of fold")
        return predict_out_of_fold(self.subject.X, self.subject.y, self.bundles, seed=self.seed)

    @cached_property
    def opinion(self) -> Opinion:
        """Return the labels that are probably wrong. BadDataset where folds cannot be made."""
        return label_errors(self.subject.y, self.probabilities, self._nearest[1])

    @cached_property
    def outliers(self) -> Odd:
        """Return the pictures far from all others."""
        return far_out(self.subject.y, self._nearest[0])

    @cached_property
    def blank(self) -> Odd:
        """Return the pictures with nothing on them; none where there are no pictures to look at."""
        thumbnails = self.subject.thumbnails
        return Odd(np.empty(0, np.int64), np.empty(0)) if thumbnails is None else blank(thumbnails)
