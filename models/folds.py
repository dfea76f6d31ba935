"""Cross-validation folds: stratified by class, whole groups, the same for a seed whatever libraries are installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from features.datasets.stratification import label_folds
from features.errors import BadDataset

_MANY = 20_000  # groups, for which scikit-learn's greedy choice takes 8 seconds, and minutes for a million


class TooFewGroups(BadDataset):
    """A class of which too few groups are left, by its number: whoever knows its name says it."""

    def __init__(self, label: int, groups: int, needed: int) -> None:
        self.label, self.groups, self.needed = label, groups, needed
        super().__init__(self.told(f"number {label} (from 0)", "group"))

    def told(self, name: str, unit: str) -> str:
        """Return the message, with the name of the class and of what a group is."""
        units = f"{unit}{'s' * (self.groups != 1)}"
        return (
            f"class {name} has {self.groups} {units} left to learn from where a fold is held out, and {self.needed} "
            f"are needed; add more, or leave the class out"
        )


@contextmanager
def naming(classes: Sequence[str], unit: str) -> Iterator[None]:
    """Name the class, and what a group is, in a TooFewGroups of the block."""
    try:
        yield
    except TooFewGroups as error:
        raise BadDataset(error.told(classes[error.label], unit or "image")) from None


def grouped_folds(y: NDArray[np.int64], groups: NDArray[np.str_] | None, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold 0..k-1 of each row, (n,), for classes (n,) or a label matrix (n, L) (`label_folds`).

    The folds of scikit-learn's StratifiedGroupKFold (1.9), shuffled with `seed`; 20,000 groups or more are shuffled and
    dealt out. `k` is lowered to what the smallest class allows, counted in groups; TooFewGroups where a class has
    fewer than two, for then nothing can be held out.
    """
    if y.ndim == 2:
        return label_folds(y, groups, k, seed=seed)
    names = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return _grouped(y.astype(np.int64).tobytes(), names.astype(np.int64).tobytes(), k, seed).copy()


@lru_cache(maxsize=64)
def _grouped(labels: bytes, groups: bytes, k: int, seed: int) -> NDArray[np.int64]:
    """Return the folds for labels and groups in int64; heads on other views ask for the same ones again and again."""
    y, names = (np.frombuffer(column, dtype=np.int64) for column in (labels, groups))
    fewest, rarest = min((len(np.unique(names[y == c])), int(c)) for c in np.unique(y))
    if fewest < 2:
        raise TooFewGroups(rarest, fewest, 2)
    return (_dealt if names.max() >= _MANY else _stratified)(y, names, min(k, fewest), seed)


def _stratified(y: NDArray[np.int64], names: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Return folds (n,) with each group, the most uneven first, where it leaves the classes' shares the most even.

    scikit-learn does the same in a tenth of the speed, after a second of imports.
    """
    _, label, count = np.unique(y, return_inverse=True, return_counts=True)
    of_group, filled, each = np.zeros((names.max() + 1, len(count))), np.zeros((k, len(count))), np.arange(k)
    np.add.at(of_group, (names, label), 1)
    order = np.arange(len(of_group))
    np.random.RandomState(seed).shuffle(order)  # as scikit-learn does
    fold = np.empty(len(of_group), np.int64)
    for group in order[np.argsort(-of_group[order].std(axis=1), kind="stable")]:
        tried = np.repeat(filled[None], k, axis=0)
        tried[each, each] += of_group[group]
        best = _most_even((tried / count).std(axis=1).mean(axis=1), filled.sum(axis=1))
        filled[best] += of_group[group]
        fold[group] = best
    return fold[names]


def _most_even(spread: NDArray[np.float64], rows: NDArray[np.float64]) -> int:
    """Return the place of the least spread (k,), of nearly equal ones the first with the fewest rows (k,) so far."""
    best = 0
    for i in range(1, len(spread)):
        near = abs(spread[i] - spread[best]) <= 1e-8 + 1e-5 * spread[best]
        if spread[i] < spread[best] or (near and rows[i] < rows[best]):
            best = i
    return best


def _dealt(y: NDArray[np.int64], names: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Return folds (n,) with shuffled groups, alike in rarest class and size, dealt out one to each fold in turn."""
    rarity = np.argsort(np.argsort(-np.bincount(y), kind="stable"))[y]
    rarest, size = np.zeros(names.max() + 1, np.int64), np.bincount(names)
    np.maximum.at(rarest, names, rarity)
    order = np.lexsort((np.random.default_rng(seed).random(len(size)), -size, -rarest))
    fold = np.empty(len(size), np.int64)
    fold[order] = np.arange(len(size)) % k
    return fold[names]


def held_out(y: NDArray[np.int64], groups: NDArray[np.str_] | None, *, seed: int = 0, k: int = 5) -> NDArray[np.bool_]:
    """Return which rows are held out for early stopping, (n,): one of `k` grouped folds."""
    return np.asarray(grouped_folds(y, groups, k, seed=seed) == 0)
