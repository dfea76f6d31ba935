"""The digest of every image's bytes, remembered by size and times so that a no-op reads no image.

The idea is git's index: a file whose size, mtime and ctime are as they were has the bytes it had. The file is a
memo; when it is missing or damaged the images are read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from features.cache.sealed import build, is_whole, write_sealed
from features.datasets.dataset import Stamps

UNKNOWN = b""  # the digest of an image that has to be read first
RACY_NS = 2_000_000_000  # a file touched this short a time before it was read may change within one tick


class Digests(NamedTuple):
    """sha256 of each image, in the order of `ids`; UNKNOWN where the image has to be read."""

    ids: NDArray[np.bytes_]  # (n,) utf-8, sorted
    sha256: NDArray[np.bytes_]  # (n,) S64 hex, or UNKNOWN
    stamps: NDArray[np.int64]  # (n, 3) size, mtime, ctime

    @classmethod
    def of(cls, ids: list[str], stamps: Stamps, memo: Digests | None = None) -> Digests:
        """Return the digests of the sorted `ids`, taken from `memo` where the stamps are the same."""
        names = np.array([i.encode() for i in ids], dtype=np.bytes_) if ids else np.empty(0, "S1")
        now = np.stack([stamps.size, stamps.mtime, stamps.ctime], axis=1).astype(np.int64)
        digests = cls(names, np.full(len(ids), UNKNOWN, dtype="S64"), now)
        digests.fill(memo)
        return digests

    def fill(self, memo: Digests | None) -> None:
        """Take the digests that are unknown here from a memo, where the stamps are the same."""
        if memo is None or not len(memo.ids) or not len(self.ids):
            return
        at = np.searchsorted(memo.ids, self.ids).clip(max=len(memo.ids) - 1)
        same = ~self.known() & (memo.ids[at] == self.ids) & (memo.stamps[at] == self.stamps).all(axis=1)
        self.sha256[same] = memo.sha256[at[same]]

    def known(self) -> NDArray[np.bool_]:
        """Return which images have a digest, (n,)."""
        return np.asarray(self.sha256 != UNKNOWN)

    def save(self, path: Path, *, clock: int) -> None:
        """Write the memo; digests of files changed within two seconds before `clock` (ns) are not trusted."""
        trusted = self.known() & (self.stamps[:, 1:].max(axis=1, initial=0) < clock - RACY_NS)

        def fill(file: h5py.File) -> None:
            file.attrs["about"] = "Firn memo: sha256 of the image ids[i] as long as size, mtime and ctime are stamps[i]"
            file["ids"], file["sha256"], file["stamps"] = self.ids[trusted], self.sha256[trusted], self.stamps[trusted]

        write_sealed(path, build(fill))

    @classmethod
    def load(cls, path: Path) -> Digests | None:
        """Return the memo, or None where it is missing or damaged."""
        try:
            if not is_whole(path):
                return None
            with h5py.File(path, "r", locking=False) as file:
                return cls(file["ids"][...], file["sha256"][...], file["stamps"][...])
        except (OSError, KeyError, ValueError):
            return None
