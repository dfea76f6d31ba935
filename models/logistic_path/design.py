"""The feature matrix as every fold sees it: standardised on that fold's training rows, stored once for all folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import ROWS, Array, Arrays, Numpy, in_turn

_LARGE = 2_000_000  # numbers in the matrix, from which on blocks of its rows are worth a thread each


class Moments(NamedTuple):
    """Mean and standard deviation of every feature, over all rows and over each fold's training rows, in float64."""

    center: NDArray[np.float64]  # (d,) near the mean, exact in float32
    spread: NDArray[np.float64]  # (d,) over all rows; 1 where a feature is constant
    mean: NDArray[np.float64]  # (F, d)
    scale: NDArray[np.float64]  # (F, d) 1 / standard deviation, or 1; 0 where a feature is constant in the fold


@dataclass(frozen=True)
class Design:
    """Row i of fold f is `scale[f] * (matrix[i] - mean[f])`, multiplied out in `dtype` and never stored."""

    arrays: Arrays
    matrix: Array  # (n, d) any float; anything with shape and dtype that gives host arrays for slices, for `part` alone
    mean: Array  # (F, d) in the units of the matrix
    scale: Array  # (F, d)
    weight: Array  # (F, n) weight of each training row, 0 for a held-out row
    dtype: str

    def scores(self, theta: Array, fold: NDArray[np.int64]) -> Array:
        """Return (B, K, n): row times weights plus intercept, for theta (B, K, d + 1) with the intercept last."""
        problems, classes, _ = theta.shape
        v = theta[..., :-1] * self.scale[fold][:, None]
        shift = theta[..., -1] - (v * self.mean[fold][:, None]).sum(-1)
        flat = self.arrays.packed(v.reshape(problems * classes, -1).T)
        parts = list(self._by_rows(lambda rows, block: block @ flat))
        z = parts[0] if len(parts) == 1 else self.arrays.xp.concatenate(parts)
        return self.arrays.packed(z.T).reshape(problems, classes, -1) + shift[..., None]

    def gradient(self, residual: Array, fold: NDArray[np.int64]) -> Array:
        """Return (B, K, d + 1), the transpose of `scores` applied to residual (B, K, n)."""
        problems, classes, n = residual.shape
        flat = residual.reshape(problems * classes, n)
        total = residual.sum(-1)[..., None]
        g = self.arrays.put(np.zeros((problems * classes, self.matrix.shape[1]), self.dtype))
        for part in self._by_rows(lambda rows, block: flat[:, rows] @ block):
            g += part
        g = g.reshape(problems, classes, -1)
        g = (g - total * self.mean[fold][:, None]) * self.scale[fold][:, None]
        return self.arrays.xp.concatenate([g, total], -1)

    def of_folds(self, own: slice, weight: NDArray[Any]) -> Design:
        """Return the design of some folds, under row weights (F', n)."""
        rows = self.arrays.put(weight, self.dtype)
        return replace(self, mean=self.mean[own], scale=self.scale[own], weight=rows)

    def part(self, rows: slice) -> Design:
        """Return the design of some rows, in memory and in the right precision."""
        block = self.arrays.put(self.matrix[rows], self.dtype)
        return replace(self, matrix=block, weight=self.weight[:, rows])

    def _by_rows(self, function: Callable[[slice, Array], Array]) -> Iterable[Array]:
        """Return function(rows, matrix[rows]) for all rows, block by block where they are many or have to be converted.

        Many are gone through in threads. Blocks are the same, and so is what they add up to, however many there are.
        """
        n, d = self.matrix.shape
        large, right = n * d >= _LARGE, self.matrix.dtype == getattr(self.arrays.xp, self.dtype)
        step = n if right and not (large and isinstance(self.arrays, Numpy)) else ROWS
        blocks = [slice(start, start + step) for start in range(0, n, step)]

        def over(rows: slice) -> Array:
            return function(rows, self.arrays.cast(self.matrix[rows], self.dtype))

        return in_turn(self.arrays, over, blocks) if large else map(over, blocks)


@final
class Standardised:
    """X centred and scaled to the moments of all rows, in float32, a block of rows at a time and never stored."""

    dtype = np.dtype(np.float32)

    def __init__(self, X: Any, found: Moments) -> None:
        self._X, self._inverse = X, (1 / found.spread).astype(np.float32)
        self._center = found.center.astype(np.float32)
        self.shape: tuple[int, int] = X.shape

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return some rows."""
        x = self._X[rows] - self._center
        x *= self._inverse
        return np.asarray(x, np.float32)


def moments(X: Any, folds: NDArray[np.bool_], standardize: bool) -> Moments:
    """Return the moments of X (n, d) for training masks (F, n), in one pass that starts from the mean of some rows.

    With `standardize` false the scales are 1 (0 for constant features) and only the means count.
    """
    n, d = X.shape
    center = X[np.linspace(0, n - 1, min(n, ROWS)).astype(np.intp)].mean(0, dtype=np.float64)
    center = center.astype(np.float32).astype(np.float64)
    masks = np.vstack([folds, np.ones(n, bool)])
    first, second = np.zeros((2, len(masks), d))
    for start in range(0, n, ROWS):
        b = slice(start, min(start + ROWS, n))
        x, own = X[b] - center, masks[:, b].astype(np.float64)
        first += own @ x
        second += own @ np.square(x, out=x)
    count = masks.sum(1)[:, None]
    offset = first / count
    spread = np.sqrt(np.maximum(second / count - offset**2, 0))
    _retake(spread, offset, center, X, masks)
    constant = spread <= count * np.finfo(np.float64).eps * np.abs(center + offset)  # as StandardScaler decides
    spread = np.where(constant | (not standardize), 1, spread)
    return Moments(center, spread[-1], center + offset[:-1], np.where(constant, 0, 1 / spread)[:-1])


def _retake(spread: NDArray[Any], offset: NDArray[Any], center: NDArray[Any], X: Any, masks: NDArray[np.bool_]) -> None:
    """Compute again, in place, the spreads (F, d) so far below the offset that the subtraction has spoilt them."""
    spoilt = spread <= 1e-4 * np.abs(offset)
    columns = np.flatnonzero(spoilt.any(0))
    mean, second = (center + offset)[:, columns], np.zeros((len(masks), len(columns)))
    for i in range(0, len(X) if len(columns) else 0, ROWS):
        x = X[i : i + ROWS][:, columns].astype(np.float64)
        for f, mask in enumerate(masks[:, i : i + ROWS]):
            second[f] += mask @ np.square(x - mean[f])
    again = np.sqrt(second / masks.sum(1)[:, None])
    spread[:, columns] = np.where(spoilt[:, columns], again, spread[:, columns])


def exact_design(arrays: Arrays, X: Any, weight: NDArray[Any], found: Moments) -> Design:
    """Return the design over X itself, whatever its precision, multiplied out in float64."""
    mean, scale, rows = (arrays.put(a, "float64") for a in (found.mean, found.scale, weight))
    return Design(arrays, arrays.put(X) if isinstance(X, np.ndarray) else X, mean, scale, rows, "float64")


def fast_design(exact: Design, X: Any, found: Moments) -> Design:
    """Return the same design in float32, over X standardised on all rows so that no precision cancels.

    Of an array that is a copy; of rows on the disk it is made anew each time that they are read.
    """
    arrays, matrix = exact.arrays, Standardised(X, found)
    return replace(
        exact,
        matrix=arrays.put(_copied(matrix)) if isinstance(X, np.ndarray) else matrix,
        mean=arrays.put((found.mean - found.center) / found.spread, "float32"),
        scale=arrays.put(found.scale * found.spread, "float32"),
        weight=arrays.cast(exact.weight, "float32"),
        dtype="float32",
    )


def _copied(matrix: Standardised) -> NDArray[np.float32]:
    """Return all rows of the matrix."""
    copy = np.empty(matrix.shape, np.float32)
    for i in range(0, len(copy), ROWS):
        copy[i : i + ROWS] = matrix[i : i + ROWS]
    return copy
