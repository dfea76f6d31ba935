"""Predictions of one model: image, group, label, class probabilities and fold; reading and writing them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import CacheError
from features.storage import write_whole
from models.metrics.sample import two_classes


class Predictions(NamedTuple):
    """Predictions sorted by image id: the images once for each repeat of a cross-validation, then the test images.

    Of several findings per image y is (n, L) of 0, 1 and -1 (missing), and proba (n, L) that of each finding.
    """

    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,)
    y: NDArray[np.int64]  # (n,)
    proba: NDArray[np.float64]  # (n, K), rows sum to 1
    fold: NDArray[np.int64]  # (n,) the fold in which the image was held out; -1 for test images

    @property
    def several(self) -> bool:
        """Return whether images have several findings each."""
        return self.y.ndim == 2

    def finding(self, k: int) -> Predictions:
        """Return the predictions of one finding, as of two classes, for the images that have its label."""
        proba = two_classes(self.proba[:, k])
        return Predictions(self.ids, self.groups, self.y[:, k], proba, self.fold).take(self.y[:, k] >= 0)

    def part(self, *, test: bool) -> Predictions:
        """Return the test images, or the out-of-fold predictions of the training images."""
        return self.take((self.fold < 0) == test)

    def take(self, at: NDArray[np.bool_]) -> Predictions:
        """Return the rows under a mask (n,)."""
        return Predictions(self.ids[at], self.groups[at], self.y[at], self.proba[at], self.fold[at])


def save_predictions(path: Path, predictions: Predictions, classes: tuple[str, ...]) -> None:
    """Write predictions as CSV, one line per image, with all digits, so that loading gives the same numbers."""
    text = io.StringIO(newline="")
    names = (*classes, *predictions.ids.tolist(), *predictions.groups.tolist())
    bare = not any("\r" in name for name in names)  # which csv quotes only where it quotes everything
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL if bare else csv.QUOTE_ALL)
    writer.writerow(_header(classes, several=predictions.several))
    columns = zip(*(column.tolist() for column in predictions), strict=True)
    for image, group, label, proba, fold in columns:
        labels = label_cells(label) if predictions.several else [classes[label]]
        writer.writerow([image, group, "test" if fold < 0 else fold, *labels, *map(repr, proba)])
    write_whole(path, [text.getvalue().encode()])


_LABELS = {1: "1", 0: "0", -1: ""}


def label_cells(labels: Sequence[int]) -> list[str]:
    """Return the labels of the findings of one image as a table has them, empty where one is missing."""
    return [_LABELS[label] for label in labels]


def _header(classes: tuple[str, ...], *, several: bool) -> list[str]:
    labels = [f"label_{name}" for name in classes] if several else ["label"]
    return ["id", "group", "fold", *labels, *(f"p_{name}" for name in classes)]


def load_predictions(path: Path, classes: tuple[str, ...], *, again: str = "") -> Predictions:
    """Read the predictions that `save_predictions` wrote; else CacheError, which says how to make them `again`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        several = header[3:4] != ["label"]
        if header != _header(classes, several=several):
            raise ValueError(f"its columns are {header}, expected classes {list(classes)}")
        first = 3 + (len(classes) if several else 1)
        ids, groups = (np.array([row[i] for row in rows], dtype=np.str_) for i in (0, 1))
        fold = np.array([-1 if row[2] == "test" else int(row[2]) for row in rows], dtype=np.int64)
        read = {text: label for label, text in _LABELS.items()}
        labels = [[read[cell] for cell in row[3:first]] if several else classes.index(row[3]) for row in rows]
        y = np.array(labels, dtype=np.int64).reshape(len(rows), *[len(classes)] * several)
        proba = np.array([[float(p) for p in row[first:]] for row in rows], dtype=np.float64).reshape(
            len(rows), len(classes)
        )
    except (OSError, ValueError, LookupError) as error:
        raise CacheError(f"cannot read {path} ({error}){f'; {again}' * bool(again)}") from None
    return Predictions(ids, groups, y, proba, fold)
