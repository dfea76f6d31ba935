"""Several findings per image: a label matrix (n, L) in which a label may be missing, and one finding of it by itself.

A data set and the cache know one label per image, the number of its class. Of a set with findings the classes are the
rows of the label matrix that occur, written like `01?0`: the matrix comes back from classes and labels (`label_matrix`)
whenever a view is opened, and neither the cache nor a pack needs another format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset, LeftOut
from features.errors import BadDataset, FirnError, command, counted, listed, unknown

ABSENT, PRESENT, MISSING = "0", "1", "?"
UNCERTAIN = {"ignore": MISSING, "positive": PRESENT, "negative": ABSENT}  # what -1 counts as
FEWEST = 10  # groups (patients) with a finding, and as many without, below which it is left out
ONE = "finding:"  # LABELS=finding:Effusion is that finding alone, as a task of two classes


def choose_uncertain(name: str) -> str:
    """Return the letter that an uncertain label counts as. Raises UnknownName."""
    if name not in UNCERTAIN:
        raise unknown("value of UNCERTAIN=", name, UNCERTAIN)
    return UNCERTAIN[name]


def label_matrix(patterns: Sequence[str]) -> NDArray[np.int64]:
    """Return 0, 1 and -1 (missing) for each letter of patterns of L letters each, (len(patterns), L)."""
    letters = np.array([list(pattern) for pattern in patterns], dtype="U1").reshape(len(patterns), -1)
    return np.select([letters == PRESENT, letters == ABSENT], [1, 0], -1)


def patterns_of(matrix: NDArray[np.int64]) -> list[str]:
    """Return each row of a label matrix (n, L) of 0, 1 and -1 as a pattern."""
    letters = np.array([MISSING, ABSENT, PRESENT])[matrix + 1]
    return ["".join(row) for row in letters.tolist()]


def with_findings(dataset: Dataset, names: Sequence[str], matrix: NDArray[np.int64]) -> Dataset:
    """Return the data set with a label matrix (n, L) of 0, 1 and -1 instead of its labels."""
    classes, labels = np.unique(np.array(patterns_of(matrix), np.str_), return_inverse=True)
    return replace(
        dataset,
        classes=tuple(classes.tolist()),
        labels=labels.astype(np.int64),
        findings=tuple(names),
        positive_is_guess=False,
    )


def without_rare(dataset: Dataset) -> Dataset:
    """Return the data set without the findings that fewer than FEWEST groups have, or have not.

    They are in `left_out` by name, and so are images of which no label is left. Raises BadDataset where no finding
    stays.
    """
    if not dataset.findings:
        return dataset
    matrix = label_matrix(dataset.classes)[dataset.labels]
    present, absent = (groups_with(matrix == value, dataset.groups) for value in (1, 0))
    kept = (present >= FEWEST) & (absent >= FEWEST)
    unit = dataset.grouped_by or "image"
    rare = [f"{name} ({n:,})" for name, n, k in zip(dataset.findings, present.tolist(), kept, strict=True) if not k]
    if not kept.any():
        raise BadDataset(
            f"{dataset.source.where}: no finding is present in {FEWEST} {unit}s and absent in {FEWEST} "
            f"({listed(rare)}); add images, or, where these are classes, write their names without | and ;"
        )
    if not rare:
        return dataset
    names = tuple(np.array(dataset.findings, np.str_)[kept].tolist())
    reason = f"findings that fewer than {FEWEST} {unit}s have, or have not"
    gone = LeftOut(reason, len(rare), tuple(rare))
    return replace(with_findings(dataset, names, matrix[:, kept]), left_out=(*dataset.left_out, gone))


def groups_with(mask: NDArray[np.bool_], groups: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many groups (n,) have a row in each column of a mask (n, L), (L,)."""
    names, place = np.unique(groups, return_inverse=True)
    seen = np.zeros((len(names), mask.shape[1]), dtype=bool)
    np.logical_or.at(seen, place, mask)
    return np.asarray(seen.sum(axis=0), dtype=np.int64)


def has_any(dataset: Dataset) -> Dataset:
    """Return a data set of findings as one of classes: images with a finding, images without, as far as there are."""
    if not dataset.findings:
        return dataset
    present = (label_matrix(dataset.classes) == 1).any(axis=1)[dataset.labels]
    names = np.array(["no finding", "finding"])
    classes, labels = np.unique(present.astype(np.int64), return_inverse=True)
    return replace(dataset, classes=tuple(names[classes].tolist()), labels=labels.astype(np.int64), findings=())


def findings_of(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the findings in what a manifest says of its data set; none for one label per image."""
    return tuple(str(name) for name in about.get("findings", ()))


def label_names(dataset: Dataset) -> list[str]:
    """Return what LABELS= may be: views of the classes, or single findings, and the labels as they are."""
    return [*dataset.label_views, *(f"{ONE}{name}" for name in dataset.findings), "classes"]


def one_finding(about: Mapping[str, Any], labels: str) -> tuple[tuple[str, str], NDArray[np.int64]]:
    """Return the classes of one finding, and its label of each pattern: 0, 1, or -1 where it is missing.

    `labels` is "finding:Effusion". Raises FirnError, with what to type, for all findings at once, UnknownName for one
    that there is not.
    """
    names = findings_of(about)
    if labels == "classes":
        raise FirnError(
            f"{about['dataset']} has {counted(len(names), 'finding')} per image ({listed(names)}), "
            f"and this takes one of them at a time; run: {command('extract train-heads', LABELS=f'{ONE}{names[0]}')}"
        )
    known = [f"{ONE}{name}" for name in names]
    if labels not in known:
        raise unknown("labels", labels, [*known, "classes"])
    at = known.index(labels)
    return (f"no {names[at]}", names[at]), label_matrix(about["classes"])[:, at]
