"""The few array operations in which numpy and torch differ; all else the sweep writes once, for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
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


_threads: ContextVar[int] = ContextVar("threads", default=0)  # of the linear algebra outside of `one_thread`; 0 there


@cache
def _libraries() -> Any:
    """Return numpy's and scipy's linear algebra, each of which has threads of its own."""
    import scipy.linalg  # noqa: F401 - or it would be loaded later, with all its threads
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Have the linear algebra use one thread in a block or, as a decorator, a function; `in_turn` has the others there.

    Its threads wait for one another in a loop. Where other programs are running, a product of a millisecond then takes
    as long as the other thread waits for a core: on two cores at a load of 8 a sweep took 8 to 40 times as long.
    """
    libraries = _libraries()
    threads = _threads.get() or max((int(each["num_threads"]) for each in libraries.info()), default=1)
    before = _threads.set(threads)
    try:
        with libraries.limit(limits=1):
            yield
    finally:
        _threads.reset(before)


def in_turn(arrays: Arrays, function: Callable[[Given], Made], given: Sequence[Given]) -> Iterator[Made]:
    """Yield function(g) for each g, in order: in `one_thread` from as many threads as the linear algebra may use.

    On a GPU they would only wait for one another, so that there it is the calling one.
    """
    count = min(_threads.get(), len(given)) if isinstance(arrays, Numpy) else 1
    if count <= 1:
        yield from map(function, given)
        return
    with ThreadPoolExecutor(count) as executor:
        yield from executor.map(function, given)
