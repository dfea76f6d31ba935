"""Train/test splits: the publisher's, or one drawn by group and class."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset
from features.datasets.findings import label_matrix
from features.datasets.stratification import label_folds
from features.errors import BadDataset

TEST_SHARE = 0.2
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "data dataset datasets set sets image images img imgs split folder files cases samples",
    )
)


def split_names(folders: list[str]) -> dict[str, str]:
    """Return the folders that are called after a split, and which: `training_set`, `Val-Images`, `testdata`.

    What all of them have in their names besides (`ISIC_Training`, `ISIC_Test`) does not count.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for folder in folders:
        words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", folder).lower())
        words = [_unglued(word) for word in words if word not in _FILLERS]
        splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(splits) == 1:
            found[folder] = splits.pop(), tuple(word for word in words if word not in SPLIT_NAMES)
    if len(found) == len(folders) > 1 and len({rest for _, rest in found.values()}) == 1:
        return {folder: split for folder, (split, _) in found.items()}
    return {folder: split for folder, (split, rest) in found.items() if not rest}


def _unglued(word: str) -> str:
    """Return `train` of `trainset`."""
    return next((word.removesuffix(end) for end in _FILLERS if word.removesuffix(end) in SPLIT_NAMES), word)


def settle_splits(dataset: Dataset, *, seed: int, test: float = TEST_SHARE) -> Dataset:
    """Return the data set with every image in train, val or test: the publisher's split, or one drawn by group.

    A split that came with the images is kept, groups on both sides included; `split_by` then says how many, and
    `straddling` which. Where val but no test came, val is the test: its images are the only ones meant to score on.
    Where nothing is held out (no split, or train alone), the share `test` of each class is drawn as test, by group.
    Raises BadDataset where train lacks a class, a class has too few groups to draw from, or a share is asked for of a
    split that came.
    """
    given = set(np.unique(dataset.splits).tolist())
    if given <= {"", "train"}:
        return _drawn(dataset, seed, test)
    refuse_share(dataset, test)
    splits, split_by = dataset.splits, "publisher"
    if "test" not in given:
        splits, split_by = np.where(splits == "val", "test", splits), "publisher, whose val is taken as test"
    both = len(straddling(dataset.groups, splits)) if dataset.grouped_by else 0
    if both:
        split_by += f"; groups ({dataset.grouped_by}) in more than one split: {both}"
    if "train" not in given:
        raise BadDataset(
            f"{dataset.source.where} holds {' and '.join(sorted(given))} and no train: nothing to learn from; add "
            "train, or give images without splits, of which Firn draws a test; a bundle is judged on it by validate"
        )
    _require_classes(dataset, dataset.labels[splits == "train"], "has no image in train")
    return replace(dataset, splits=splits, split_by=split_by)


def refuse_share(dataset: Dataset, test: float) -> None:
    """Raise BadDataset for another share than the usual one, of a data set whose split came with it."""
    if test != TEST_SHARE:
        raise BadDataset(
            f"TEST={test:g} is for a set whose test split Firn draws, and {dataset.source.where} came with a split; "
            f"leave TEST= away"
        )


def _drawn(dataset: Dataset, seed: int, share: float) -> Dataset:
    # ids are unique and sorted: where they are the groups, their rank serves as well and is a hundred times faster
    single = len(set(dataset.groups.tolist())) == len(dataset)
    groups = np.arange(len(dataset)) if single and not dataset.grouped_by else dataset.groups
    unit = dataset.grouped_by or "image"
    if dataset.findings:
        matrix = label_matrix(dataset.classes)[dataset.labels]
        test = label_folds(matrix, groups, round(1 / share), seed=seed) == 0
    else:
        test = split_by_group(dataset.labels, groups, test=share, seed=seed)
    for side in (test, ~test):
        _require_classes(dataset, dataset.labels[side], f"lands on one side of a test split drawn by {unit}")
    what = "finding" if dataset.findings else "class"
    split_by = f"Firn, {100 * share:g}% of each {what} drawn as test by {unit}, seed {seed}"
    return replace(dataset, splits=np.where(test, "test", "train"), split_by=split_by)


def _require_classes(dataset: Dataset, labels: NDArray[np.int64], fault: str) -> None:
    for label, name in enumerate(() if dataset.findings else dataset.classes):
        if not (labels == label).any():
            raise BadDataset(f"{dataset.source.where}: class {name!r} {fault}; add some or leave the class out")


def split_by_group(
    labels: NDArray[np.int64], groups: NDArray[Any], *, test: float = TEST_SHARE, seed: int = 0
) -> NDArray[np.bool_]:
    """Draw whole groups for the test until it has about the share `test` of each class; return (n,) True for test.

    Each group counts for its rarest class. Within a class groups come in random order, those larger than the whole
    share last, and are taken while at least half of one fits; the first is taken always where there are two.
    The draw depends on `seed` and the names of the groups, not on the order of the rows.
    """
    names, group = np.unique(groups, return_inverse=True)
    _, label, frequency = np.unique(labels, return_inverse=True, return_counts=True)
    rarity = np.argsort(np.argsort(frequency, kind="stable"), kind="stable")
    stratum = np.full(len(names), len(frequency))
    np.minimum.at(stratum, group, rarity[label])
    size = np.bincount(group)
    share = test * np.bincount(stratum, weights=size)[stratum]
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = np.lexsort((shuffled, np.where(size > share, size, 0), stratum))
    _, first, count = np.unique(stratum[order], return_index=True, return_counts=True)
    drawn = np.cumsum(size[order]) - size[order]
    before = drawn - np.repeat(drawn[first], count)
    taken = before + size[order] / 2 <= share[order]
    taken[first[count > 1]] = True
    chosen = np.zeros(len(names), bool)
    chosen[order] = taken
    return chosen[group]


def straddling(groups: NDArray[np.str_], splits: NDArray[np.str_]) -> list[str]:
    """Return the names of the groups that lie in more than one split, sorted."""
    names, group = np.unique(groups, return_inverse=True)
    _, split = np.unique(splits, return_inverse=True)
    present = np.zeros((len(names), int(split.max(initial=0)) + 1), bool)
    present[group, split] = True
    return [str(name) for name in names[present.sum(axis=1) > 1]]
