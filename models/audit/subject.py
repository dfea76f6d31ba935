"""The data set under audit, with features, labels, splits, groups, digests and thumbnails."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import SPLITS

_ROWS = 8192  # rows standardised at once


@dataclass(frozen=True, eq=False)
class Subject:
    """The data set under audit; row i of every column is image ids[i]."""

    ids: NDArray[np.str_]  # (n,) sorted
    y: NDArray[np.int64]  # (n,)
    splits: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,) the id itself where no group is known
    sha256: NDArray[np.bytes_]  # (n,) of the image's bytes
    X: NDArray[np.float32]  # (n, d)
    classes: tuple[str, ...]
    grouped_by: str = ""  # what a group is; empty where none is known
    thumbnails: NDArray[np.uint8] | None = None  # (n, 64, 64); None where there are no images
    left_out: tuple[str, ...] = ()  # "image: why" of those that could not be read

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Return the place of each row's split in SPLITS, (n,): what is trained on comes first."""
        return np.array([SPLITS.index(str(split)) for split in self.splits], np.int64)

    @cached_property
    def content(self) -> NDArray[np.int64]:
        """Return a number for each row's bytes, (n,): equal for equal bytes."""
        return codes(self.sha256)

    @cached_property
    def alike(self) -> NDArray[np.int64]:
        """Return a number, (n,), that is equal where likeness does no harm: one group, one split, one label."""
        group, label = codes(self.groups), int(self.y.max()) + 1
        return codes((group * len(SPLITS) + self.order) * label + self.y)

    @cached_property
    def standardised(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return standardised features as directions (n, d) of length 1 and lengths (n,); constant features are 0."""
        mean, std = self.X.mean(0, dtype=np.float64), self.X.std(0, dtype=np.float64)
        scale = np.where(std > 1e-6 * (1 + np.abs(mean)), std, np.inf)
        directions = np.empty(self.X.shape, np.float32)
        for i in range(0, len(self.X), _ROWS):
            directions[i : i + _ROWS] = (self.X[i : i + _ROWS] - mean) / scale
        lengths = np.maximum(np.linalg.norm(directions, axis=1), 1e-6).astype(np.float32)
        directions /= lengths[:, None]
        return directions, lengths


def codes(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return a number from 0 for each different value, (n,)."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
