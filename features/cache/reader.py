"""Pooled features that stay on the disk: rows are read, and pass their checksums, when somebody asks for them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from features.cache.index import Rows
from features.cache.shard import Shard, block_rows
from features.errors import CacheError
from features.views import Cached, View, choose_pool, load_manifest

Places: TypeAlias = NDArray[np.integer[Any]] | NDArray[np.bool_]

_OPEN = 64  # shards kept open
_BEYOND = np.float32(65536)  # above every finite float16


class _Shards:
    """The shards of a part by number; the one opened longest ago is closed where too many are open."""

    def __init__(self, entry: Cached, names: list[str]) -> None:
        self._entry, self._names = entry, names
        self._open: dict[int, Shard] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Shard:
        with self._lock:
            if index not in self._open:
                while len(self._open) >= _OPEN:
                    self._open.pop(next(iter(self._open))).close()
                self._open[index] = self._entry.shard(self._names[index])
            return self._open[index]

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            self._open.popitem()[1].close()


@final
class FeatureRows:
    """Arrays of a cache entry side by side: (n, d) float32 that is read, widened and checked row block by row block.

    `X[slice]`, `X[places]` and `X[mask]` read; `X.take(places)` reads nothing and shares the open files. Reading costs
    least in ascending order. Close it, or use it in a `with`. Raises CacheError for damage.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, shards: _Shards, rows: Rows, names: Sequence[str]) -> None:
        self._shards, self._rows, self._names = shards, rows, tuple(names)
        self._widths = [shards[0].column(name).shape[1] for name in names]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, d)."""
        return len(self), sum(self._widths)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows.row)

    def take(self, at: Places) -> FeatureRows:
        """Return the rows at the given places, or under a mask (n,), without reading them."""
        places = np.flatnonzero(at) if at.dtype == bool else at
        return FeatureRows(self._shards, self._rows.take(places.astype(np.intp, copy=False)), self._names)

    def __getitem__(self, at: slice | Places) -> NDArray[np.float32]:
        """Return rows, (m, d) float32."""
        shard, row = self._rows.shard[at], self._rows.row[at]
        out = np.empty((len(row), self.shape[1]), np.float32)
        for index in np.unique(shard).tolist():
            to = np.flatnonzero(shard == index)
            to = to[np.argsort(row[to], kind="stable")]
            for stretch in self._stretches(index, row[to]):
                self._fill(self._shards[index], row[to[stretch]], out, to[stretch])
        return out

    def _stretches(self, index: int, row: NDArray[np.int32]) -> list[slice]:
        """Return the pieces of ascending rows between which whole blocks of a checksum can be left out."""
        gap = block_rows(self._shards[index].column(self._names[0]).row_bytes)
        cuts = [0, *(np.flatnonzero(np.diff(row) > gap) + 1).tolist(), len(row)]
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]

    def _fill(self, shard: Shard, row: NDArray[np.int32], out: NDArray[np.float32], to: NDArray[np.intp]) -> None:
        """Read ascending rows of one shard into out[to]."""
        first, last, start = int(row[0]), int(row[-1]) + 1, 0
        whole = last - first == len(row) and to[-1] - to[0] == len(row) - 1
        place: Any = slice(int(to[0]), int(to[-1]) + 1) if whole else to
        for name, width in zip(self._names, self._widths, strict=True):
            column = shard.read(name, first, last)
            out[place, start : start + width] = widened(column if whole else column[row - first])
            start += width

    def close(self) -> None:
        """Close the files, for all that share them."""
        self._shards.close()

    def __enter__(self) -> Self:
        """Return the rows themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()


def widened(column: NDArray[Any]) -> NDArray[np.float32]:
    """Return float16 as float32, several times faster than numpy's own conversion; other floats are cast.

    The bits move to where float32 has them, and a product with 2^112 corrects the bias of the exponent.
    """
    if column.dtype != np.float16 or not column.size:
        return column.astype(np.float32, copy=False)
    bits = column.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the sign, 5 bits of exponent, 10 of mantissa
    out = bits.view(np.float32)
    out *= np.float32(2.0**112)
    finite = out.min() > -_BEYOND and out.max() < _BEYOND
    return out if finite else column.astype(np.float32)


def subset(X: NDArray[Any] | FeatureRows, at: Places) -> Any:
    """Return the rows at the given places or under a mask; those of features on the disk are not read."""
    return X.take(at) if isinstance(X, FeatureRows) else X[at]


def rows_view(entry: Cached, blocks: Sequence[str], pool: str = "avg") -> View:
    """Return what `pooled_view` does, with an X that stays on the disk; rows are in the order of the master.

    Raises UnknownName for a pooling that is none of POOLS, CacheError for an entry without rows.
    """
    kinds = choose_pool(pool).cached
    if not kinds:
        raise CacheError(f"POOL={pool} needs maps in memory, which these features exceed; take POOL=avg, max or both")
    manifest = load_manifest(entry)
    rows = manifest.parts["pooled"]
    if not len(rows.row):
        raise CacheError(f"{entry.folder} has no rows yet; run: make extract BACKBONE={entry.key.backbone}")
    names = [f"pooled/{block}/{kind}" for block in blocks for kind in kinds]
    X: Any = FeatureRows(_Shards(entry, rows.shards), rows, names)
    ids, groups, splits = (np.char.decode(c, "utf-8") for c in (manifest.ids, manifest.groups, manifest.splits))
    return View(X, manifest.labels, ids, groups, splits)
