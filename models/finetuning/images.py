"""Decoded images: decoded once for all folds and epochs, kept as they are in memory or in a file mapped into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from features.backbones.spec import BackboneSpec
from features.datasets.dataset import Source
from features.devices import memory
from features.errors import BadImage
from features.extraction.prefetch import batches, prepare
from features.extraction.shard_writer import stacked
from features.storage import artifacts_root, make_folder

_SLAB = 256  # images that lie in one array
_SHARE = 3  # of the machine's memory one part in so many may be taken


class DecodedImages:
    """Images as squares on the scale 0..255: uint8, or float32 where they are deeper; grey ones have one channel."""

    def __init__(
        self,
        source: Source,
        ids: Sequence[str],
        spec: BackboneSpec,
        preprocess: str,
        *,
        workers: int = 2,
        most: float | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Decode the images, named by sorted ids; beyond `most` bytes into a file that is gone when this is.

        Raises BadImage for one that is unreadable, OSError for a full disk.
        """
        self.ids: NDArray[np.str_] = np.asarray(ids, dtype=np.str_)  # (n,)
        most = memory() / _SHARE if most is None else most
        self._slabs: list[NDArray[Any]] = []
        with _file() if len(ids) * 3 * spec.size**2 > most else nullcontext() as file:
            for squares in batches(_decoded(source, list(ids), spec, preprocess, workers), _SLAB):
                self._slabs.append(_mapped(file, stacked(squares)) if file else stacked(squares))
                progress(min(len(self._slabs) * _SLAB, len(ids)), len(ids))
        self._shape = (max(slab.shape[1] for slab in self._slabs), spec.size, spec.size)
        self._dtype = np.result_type(*{slab.dtype for slab in self._slabs})

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, at: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return images `at`, (len(at), 1 or 3, S, S): three channels where any image of the set is in colour."""
        out = np.empty((len(at), *self._shape), self._dtype)
        for place, image in enumerate(at.tolist()):
            out[place] = self._slabs[image // _SLAB][image % _SLAB]  # a grey one is repeated
        return out


def _file() -> IO[bytes]:
    """Return a file below artifacts that has no name and is gone with the last array in it."""
    make_folder(artifacts_root())
    return tempfile.TemporaryFile(dir=artifacts_root())


def _mapped(file: IO[bytes], slab: NDArray[Any]) -> NDArray[Any]:
    start = file.seek(0, os.SEEK_END)
    file.write(slab.tobytes())
    file.flush()
    return np.memmap(file, slab.dtype, "r", start, slab.shape)


def _decoded(
    source: Source, ids: list[str], spec: BackboneSpec, preprocess: str, workers: int
) -> Iterator[NDArray[Any]]:
    """Yield the squares of images in their order. Raises BadImage."""
    way = (spec.geometry(preprocess),)
    ahead = 8 * workers + _SLAB
    for one in prepare(source, ids, range(len(ids)), way, wanted=lambda sha256: True, workers=workers, ahead=ahead):
        if one.error:
            raise BadImage(one.error)
        yield one.pixels[0]
