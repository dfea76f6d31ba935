"""The few array operations in which numpy and torch differ; all else the sweep writes once, for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from features import devices

Array: TypeAlias = Any  # a numpy array or a torch tensor
Given = TypeVar("Given")
Made = TypeVar("Made")
ROWS = 512  # rows of X converted at a time: 512 x 2048 doubles stay in the cache


class Arrays(Protocol):
    """Where the arithmetic happens."""

    @property
    def xp(self) -> Any:
        """Return the module, numpy or torch, whose functions take the arrays."""

    def put(self, a: NDArray[Any], dtype: str | None = None) -> Array:
        """Return a host array as an array of this kind, in `dtype` ("float32", "float64") where one is given."""

    def get(self, a: Array) -> NDArray[Any]:
        """Return an array of this kind as a host array."""

    def cast(self, a: Array, dtype: str) -> Array:
        """Return `a` in another precision; `a` itself where it has it."""

    def packed(self, a: Array) -> Array:
        """Return `a` contiguous in memory, last axis fastest."""

    def cholesky(self, a: Array) -> Array | None:
        """Return the lower Cholesky factor of a (k, k) matrix, which may be overwritten; None where there is none."""

    def solve(self, factor: Array, b: Array) -> Array:
        """Return a^-1 b for the (k, k) Cholesky factor of a, and b (k, columns)."""


@final
@dataclass(frozen=True)
class Numpy:
    """The processor, through numpy and LAPACK."""

    xp: Any = np

    def put(self, a: NDArray[Any], dtype: str | None = None) -> Array:
        """Return the array, converted where it must be."""
        return np.asarray(a, dtype=dtype)

    def get(self, a: Array) -> NDArray[Any]:
        """Return the array itself."""
        return np.asarray(a)

    def cast(self, a: Array, dtype: str) -> Array:
        """Convert, without a copy where none is needed."""
        return a.astype(dtype, copy=False)

    def packed(self, a: Array) -> Array:
        """Return a C-contiguous array."""
        return np.ascontiguousarray(a)

    def cholesky(self, a: Array) -> Array | None:
        """Factor in place."""
        from scipy.linalg import LinAlgError, cholesky

        try:
            return cholesky(a.T, lower=True, overwrite_a=True, check_finite=False)  # a.T: no copy for LAPACK
        except LinAlgError:
            return None

    def solve(self, factor: Array, b: Array) -> Array:
        """Solve by two triangular substitutions."""
        from scipy.linalg import cho_solve

        return cho_solve((factor, True), b, check_finite=False)


@final
@dataclass(frozen=True)
class Torch:
    """A torch device; torch's CPU runs the very code that CUDA runs."""

    xp: Any
    device: str

    def put(self, a: NDArray[Any], dtype: str | None = None) -> Array:
        """Move to the device; torch warns of read-only memory, so that is copied."""
        return self.xp.as_tensor(
            np.require(a, requirements="W"), dtype=dtype and getattr(self.xp, dtype), device=self.device
        )

    def get(self, a: Array) -> NDArray[Any]:
        """Move to the host."""
        host: NDArray[Any] = a.cpu().numpy()
        return host

    def cast(self, a: Array, dtype: str) -> Array:
        """Convert on the device."""
        return a.to(getattr(self.xp, dtype))

    def packed(self, a: Array) -> Array:
        """Return a contiguous tensor."""
        return a.contiguous()

    def cholesky(self, a: Array) -> Array | None:
        """Factor; `info` says whether the matrix was positive definite."""
        factor, info = self.xp.linalg.cholesky_ex(a)
        return None if int(info) else factor

    def solve(self, factor: Array, b: Array) -> Array:
        """Solve by two triangular substitutions."""
        return self.xp.cholesky_solve(b, factor)


def arrays_on(device: str) -> Arrays:
    """Return the arithmetic of a device: "cpu" (numpy), "cuda[:n]", "auto", or "torch-cpu" for tests of the CUDA path.

    Raises UnknownName for any other, FirnError where there is no such GPU.
    """
    name = device if device == "torch-cpu" else devices.choose_device(device)
    if name == "cpu":
        return Numpy()
    import torch

    return Torch(torch, "cpu" if name == "torch-cpu" else devices.checked(name))


def in_turn(function: Callable[[Given], Made], given: Sequence[Given]) -> Iterator[Made]:
    """Yield function(g) for each g, in order, from as many threads as the linear algebra may use, with one each.

    Small products gain nothing from two threads at one of them, and lose much where other programs are running.
    """
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController().select(user_api="blas")
    workers = max((int(info["num_threads"]) for info in pools.info()), default=1)
    with pools.limit(limits=1), ThreadPoolExecutor(workers) as executor:
        yield from executor.map(function, given)
