"""The type Dataset: images with label, split and group, whatever they were read from."""

from __future__ import annotations

import re
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
class Dataset:
    """Images with label, split and group; row i of every column is image `ids[i]`, and ids are sorted."""

    name: str  # the folder under artifacts/, made of [a-z0-9._-]
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

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)


NEGATIVE = ("normal", "negative", "benign", "healthy", "control", "no_finding")
_WORD = re.compile(rf"(?<![a-z])({'|'.join(NEGATIVE)})(?![a-z])")  # a whole word: not the "normal" of "abnormal"


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in the order of their labels: numbers by size, else by the alphabet.

    Of exactly two the negative one comes first, so that label 1 is the finding: the one named by a word of NEGATIVE.
    """
    classes = sorted(set(names))
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    if len(classes) == 2:
        classes.sort(key=_finding)
    return tuple(classes)


def _finding(name: str) -> int:
    """Return 0 for a negative class by its whole name, 1 for one by a word of it, 2 for any other."""
    plain = re.sub(r"[\s-]+", "_", name.lower())
    if plain in NEGATIVE:
        return 0
    return 1 if _WORD.search(plain) else 2
