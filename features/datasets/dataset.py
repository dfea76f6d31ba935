"""The type Dataset: images with label, split and group, whatever they were read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


class Stamps(NamedTuple):
    """What the file system says of each image without reading it; equal stamps mean equal bytes."""

    size: NDArray[np.int64]  # (n,) bytes
    mtime: NDArray[np.int64]  # (n,) ns
    ctime: NDArray[np.int64]  # (n,) ns


class Source(Protocol):
    """Where the bytes of the images come from."""

    @property
    def where(self) -> str:
        """Return the folder or file that a person would look into."""

    def read(self, image: str) -> bytes:
        """Return the encoded bytes of one image (JPEG, PNG, ..., or `.npy` for a row of an array)."""

    def stamps(self, images: list[str]) -> Stamps:
        """Return size and times of each image, for noticing change without reading."""


@dataclass(frozen=True)
class LeftOut:
    """Files or rows that a data set does not use, and why."""

    reason: str  # "masks or annotations beside their image", ...
    count: int
    examples: tuple[str, ...]  # a few of them
    images: bool = False  # whether they are images, so that a reader may have meant them

    def __str__(self) -> str:
        """Return a line for the terminal."""
        more = ", ..." if self.count > len(self.examples) else ""
        return f"left out {self.count:,}: {self.reason} ({', '.join(self.examples)}{more})"


@dataclass(frozen=True)
class Dataset:
    """Images with label, split and group; row i of every column is image `ids[i]`, and ids are sorted."""

    name: str  # the folder under artifacts/, as `storage.slug` makes it
    classes: tuple[str, ...]  # label k is classes[k]
    ids: list[str]  # (n,) path relative to the root, '/' as separator; unique and sorted
    labels: NDArray[np.int64]  # (n,)
    splits: NDArray[np.str_]  # (n,) one of SPLITS
    groups: NDArray[np.str_]  # (n,) patient, slide or source patch; the id itself where nothing is known
    source: Source
    grouped_by: str = ""  # what a group is ("patient"); empty where none is known
    split_by: str = "publisher"  # "publisher", or how Firn made the split
    label_views: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # view -> class -> merged class
    note: str = ""  # licence, citation, "synthetic"
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)  # (n,) each: age, sex, site, ...
    left_out: tuple[LeftOut, ...] = ()
    positive_is_guess: bool = False  # two classes, and no name says which of them is the finding

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @property
    def positive(self) -> str:
        """Return the class of label 1, whose sensitivity is reported; empty unless there are two classes."""
        return self.classes[1] if len(self.classes) == 2 else ""


def left_out(reason: str, names: Iterable[str], *, images: bool = False) -> tuple[LeftOut, ...]:
    """Return one record of what is left out for a reason; none where `names` is empty."""
    every = sorted(names)
    return (LeftOut(reason, len(every), tuple(every[:3]), images),) if every else ()
