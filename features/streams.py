"""Feature maps out of the cache, or images off the disk, row by row: for training that streams its input."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.backbones.spec import Recipe
from features.cache.entry import Entry
from features.cache.shard import Shard
from features.datasets.dataset import Source
from features.errors import CacheError
from features.images import pixels
from features.views import load_manifest


class MapStream:
    """Maps of one block, read in any order; every row passes its checksum. Close it, or use it in a `with`."""

    def __init__(self, entry: Entry, block: str) -> None:
        manifest = load_manifest(entry)
        part = f"maps/{block}"
        if part not in manifest.parts:
            raise CacheError(f"no maps of {block} at {entry.folder}; run: make extract MAPS={block}")
        order = np.argsort(manifest.ids, kind="stable")
        self.ids: NDArray[np.str_] = np.char.decode(manifest.ids[order], "utf-8")  # (n,)
        self._rows, self._name, self._folder = manifest.parts[part].take(order), part, entry.shards
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def _shard(self, index: int) -> Shard:
        if index not in self._open:
            self._open[index] = Shard(self._folder / self._rows.shards[index])
        return self._open[index]

    def read(self, at: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return the maps of images `at`, (len(at), C, H, W) as stored."""
        rows = self._rows.take(np.asarray(at, dtype=np.intp))
        column = self._shard(0).column(self._name)
        out = np.empty((len(at), *column.shape[1:]), column.dtype)
        for index in np.unique(rows.shard).tolist():
            to = np.flatnonzero(rows.shard == index)
            self._shard(index).gather(self._name, rows.row[to], out, to)
        return out

    def close(self) -> None:
        """Close every shard."""
        for shard in self._open.values():
            shard.close()
        self._open.clear()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every shard."""
        self.close()


class ImageStream:
    """Images as a backbone sees them, decoded whenever they are read; threads decode side by side."""

    def __init__(
        self, source: Source, ids: Sequence[str], recipe: Recipe, preprocess: str, *, workers: int = 2
    ) -> None:
        """Take the names of the images, sorted, and the recipe that says size, mean and standard deviation."""
        self.ids: NDArray[np.str_] = np.asarray(ids, dtype=np.str_)  # (n,)
        self._source, self._geometry, self._workers = source, recipe.geometry(preprocess), workers
        self._mean, self._std = (np.array(v, np.float32)[:, None, None] for v in (recipe.mean, recipe.std))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, at: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return images `at`, (len(at), 3, S, S) float32, normalised. Raises BadImage, OSError."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as threads:
            return np.stack(list(threads.map(self._one, self.ids[at].tolist())))

    def _one(self, image: str) -> NDArray[np.float32]:
        values = pixels(self._source.read(image), self._geometry, name=image).astype(np.float32)
        normal = (values / np.float32(255) - self._mean) / self._std  # grey images become three channels here
        return np.asarray(normal, dtype=np.float32)
