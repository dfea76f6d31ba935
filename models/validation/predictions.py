"""Predictions of one model: image, group, label, class probabilities and fold; reading and writing them as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import CacheError
from features.storage import write_whole


class Predictions(NamedTuple):
    """Predictions sorted by image id: the images once for each repeat of a cross-validation, then the test images."""

    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,)
    y: NDArray[np.int64]  # (n,)
    proba: NDArray[np.float64]  # (n, K), rows sum to 1
    fold: NDArray[np.int64]  # (n,) the fold in which the image was held out; -1 for test images

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
    writer.writerow(["id", "group", "fold", "label", *(f"p_{name}" for name in classes)])
    columns = zip(*(column.tolist() for column in predictions), strict=True)
    for image, group, label, proba, fold in columns:
        writer.writerow([image, group, "test" if fold < 0 else fold, classes[label], *map(repr, proba)])
    write_whole(path, [text.getvalue().encode()])


def load_predictions(path: Path, classes: tuple[str, ...]) -> Predictions:
    """Read the predictions that `save_predictions` wrote. Raises CacheError where the file does not read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if header[4:] != [f"p_{name}" for name in classes]:
            raise ValueError(f"classes are {header[4:]}, expected {list(classes)}")
        ids, groups = (np.array([row[i] for row in rows], dtype=np.str_) for i in (0, 1))
        fold = np.array([-1 if row[2] == "test" else int(row[2]) for row in rows], dtype=np.int64)
        y = np.array([classes.index(row[3]) for row in rows], dtype=np.int64)
        proba = np.array([[float(p) for p in row[4:]] for row in rows], dtype=np.float64).reshape(
            len(rows), len(classes)
        )
    except (OSError, ValueError, IndexError) as error:
        raise CacheError(f"cannot read {path} ({error}); remove {path.parent} and run: make train-heads") from None
    return Predictions(ids, groups, y, proba, fold)
