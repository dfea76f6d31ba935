"""The reader of shards: rows of the arrays of an entry or a pack, by any index, read and checked when asked for."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from features.cache.index import Rows
from features.cache.shard import Shard, block_rows

Places: TypeAlias = NDArray[np.integer[Any]] | NDArray[np.bool_]

PIECE = 16 << 20  # bytes of one array that are read at once
_OPEN = 64  # shards kept open
_BEYOND = np.float32(65536)  # above every finite float16


class Shards(Protocol):
    """An entry or a pack: whatever opens a shard by its file name."""

    def shard(self, name: str, /) -> Shard:
        """Return one shard open for reading."""


class _OpenShards:
    """The shards of a part by number; the one opened longest ago is let go where too many are open."""

    def __init__(self, source: Shards, names: list[str]) -> None:
        self._source, self._names = source, names
        self._open: dict[int, Shard] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Shard:
        with self._lock:
            if index not in self._open:
                while len(self._open) >= _OPEN:
                    self._open.pop(next(iter(self._open)))  # closes itself when no thread reads from it any more
                self._open[index] = self._source.shard(self._names[index])
            return self._open[index]

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            self._open.popitem()[1].close()


@final
class FeatureRows:
    """Arrays of a cache entry or a pack side by side, (n, d) or (n, C, H, W), that stay on the disk.

    `X[slice]`, `X[places]` and `X[mask]` read; `X.take(places)` reads nothing and shares the open files. Reading costs
    least in ascending order. Close it, or use it in a `with`. Raises CacheError for damage.
    """

    def __init__(self, source: Shards, rows: Rows, names: Sequence[str], dtype: type[np.float32] | None = None) -> None:
        """Take where the rows lie, which arrays, and float32 where they shall be widened; else they stay as stored."""
        self._shards, self._rows, self._names = _OpenShards(source, rows.shards), rows, tuple(names)
        first = self._shards[int(rows.shard[0]) if len(rows.shard) else 0]
        self._columns = [first.column(name) for name in names]
        self.dtype: np.dtype[Any] = self._columns[0].dtype if dtype is None else np.dtype(dtype)
        self._row_bytes = self._columns[0].row_bytes
        self._direct = len(names) == 1 and self.dtype == self._columns[0].dtype and block_rows(self._row_bytes) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n, d) or (n, C, H, W)."""
        first = self._columns[0].shape
        return len(self), sum(column.shape[1] for column in self._columns), *first[2:]

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows.row)

    def take(self, at: Places) -> FeatureRows:
        """Return the rows at the given places, or under a mask (n,), without reading them."""
        taken = copy.copy(self)
        places = np.flatnonzero(at) if at.dtype == bool else at
        taken._rows = self._rows.take(places.astype(np.intp, copy=False))
        return taken

    def pieces(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield all rows in order with their places, whole blocks of a checksum and about PIECE bytes at a time."""
        block = block_rows(self._row_bytes)
        step = block * max(1, PIECE // (block * self._row_bytes))
        for start in range(0, len(self), step):
            at = slice(start, min(start + step, len(self)))
            yield at, self[at]

    def __getitem__(self, at: slice | Places) -> NDArray[Any]:
        """Return rows, (m, d) or (m, C, H, W)."""
        shard, row = self._rows.shard[at], self._rows.row[at]
        out = np.empty((len(row), *self.shape[1:]), self.dtype)
        for index in np.unique(shard).tolist():
            to = np.flatnonzero(shard == index)
            to = to[np.argsort(row[to], kind="stable")]
            if self._direct:
                self._shards[index].gather(self._names[0], row[to], out, to)
                continue
            for some in self._stretches(row[to]):
                self._fill(self._shards[index], row[to[some]], out, to[some])
        return out

    def _stretches(self, row: NDArray[np.int32]) -> list[slice]:
        """Return pieces of ascending rows, cut where whole blocks of a checksum can be left out, and by PIECE."""
        gaps = np.flatnonzero(np.diff(row) > block_rows(self._row_bytes)) + 1
        cuts = {0, len(row), *gaps.tolist(), *range(0, len(row), max(1, PIECE // self._row_bytes))}
        return [slice(a, b) for a, b in itertools.pairwise(sorted(cuts))]

    def _fill(self, shard: Shard, row: NDArray[np.int32], out: NDArray[Any], to: NDArray[np.intp]) -> None:
        """Read ascending rows of one shard into out[to]."""
        first, last, start = int(row[0]), int(row[-1]) + 1, 0
        whole = bool((np.diff(row) == 1).all() and (np.diff(to) == 1).all())
        place: Any = slice(int(to[0]), int(to[-1]) + 1) if whole else to
        for name in self._names:
            rows = shard.read(name, first, last)
            stop = start + rows.shape[1]
            out[place, start:stop] = _cast(rows if whole else rows[row - first], self.dtype)
            start = stop

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


def _cast(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return rows if rows.dtype == dtype else widened(rows)


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
