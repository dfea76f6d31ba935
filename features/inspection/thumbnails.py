"""Grey thumbnails of a data set's images, kept on the disk by content, and which of them show nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from features.cache.sealed import build, is_whole, write_sealed
from features.datasets.dataset import Dataset
from features.images.phash import SIDE, thumbnail

Memo = tuple[NDArray[np.bytes_], NDArray[np.uint8]]
BLACK, FLAT = 16, 8  # of 255: nothing brighter than this, no more than this between dark and bright
_TAIL = 0.01  # share of the pixels at either end that does not count
_AHEAD = 256  # images decoded before they are asked for


def load_thumbnails(
    dataset: Dataset,
    ids: NDArray[np.str_],
    sha256: NDArray[np.bytes_],
    path: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint8]:
    """Return the thumbnails of the images `ids` (n,), whose contents are `sha256` (n,), as (n, SIDE, SIDE).

    The sealed file at `path` holds those made before; what it lacks is decoded by threads and added. An image that
    cannot be read any more is black. OSError (disk full) passes through.
    """
    known, stored = _load(path)
    contents, first, place = np.unique(sha256, return_index=True, return_inverse=True)
    found = np.empty((len(contents), SIDE, SIDE), np.uint8)
    at = np.searchsorted(known, contents).clip(max=max(len(known) - 1, 0))
    here = known[at] == contents if len(known) else np.zeros(len(contents), bool)
    found[here] = stored[at[here]]
    todo = np.flatnonzero(~here)
    if len(todo):
        done = _decoded(dataset, ids[first[todo]].tolist(), progress)
        found[todo] = done
        _save(path, contents, found)
    return found[place]


def _decoded(dataset: Dataset, ids: list[str], progress: Callable[[int, int], None]) -> NDArray[np.uint8]:
    from features.extraction.prefetch import prepare
    from features.images import Geometry

    geometry = Geometry("squash", SIDE, SIDE, "bilinear")
    thumbnails = np.zeros((len(ids), SIDE, SIDE), np.uint8)
    workers = os.cpu_count() or 1
    steps = prepare(
        dataset.source, ids, range(len(ids)), (geometry,), wanted=lambda _: True, workers=workers, ahead=_AHEAD
    )
    for done, image in enumerate(steps, start=1):
        if image.pixels:
            thumbnails[image.image] = thumbnail(image.pixels[0])
        progress(done, len(ids))
    return thumbnails


def _load(path: Path) -> Memo:
    """Return contents (m,), sorted, and thumbnails (m, SIDE, SIDE) of the memo; none where it is missing or damaged."""
    try:
        if is_whole(path):
            with h5py.File(path, "r", locking=False) as file:
                return file["sha256"][...], file["thumbnails"][...]
    except (OSError, KeyError, ValueError):
        pass
    return np.empty(0, "S64"), np.empty((0, SIDE, SIDE), np.uint8)


def _save(path: Path, sha256: NDArray[np.bytes_], thumbnails: NDArray[np.uint8]) -> None:
    """Write the memo: the images that the data set has now."""

    def fill(file: h5py.File) -> None:
        file.attrs["about"] = "Firn memo: grey thumbnails[i] of the image whose bytes have the digest sha256[i]"
        file["sha256"], file["thumbnails"] = sha256.astype("S64"), thumbnails

    write_sealed(path, build(fill))


def blank(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of (n, S, S) that are near-black or near-constant, and the grey range of each, smallest first."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    ends = [_TAIL, 1 - _TAIL]
    low, high = np.concatenate(
        [np.quantile(part, ends, axis=1, method="nearest") for part in np.array_split(flat, 1 + len(flat) // 4096)], 1
    ).astype(np.float64)
    rows = np.flatnonzero((high <= BLACK) | (high - low <= FLAT))
    rows = rows[np.argsort((high - low)[rows], kind="stable")]
    return rows, (high - low)[rows]
