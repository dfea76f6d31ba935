"""What a fine-tuned network is trained on: rows of one or several views of every image, read a little ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.errors import CacheError
from models.finetuning.augmentation import NUMBERS, Pixels

_AHEAD = 3  # batches


class Stream(Protocol):
    """One view of all images: `features.views.View` or `models.finetuning.images.DecodedImages`."""

    @property
    def ids(self) -> NDArray[np.str_]:
        """Return the names of the images, (n,) sorted."""

    def read(self, at: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return rows `at`, (len(at), C, H, W)."""


class Inputs:
    """Views of the same images; row i is image `ids[i]` in every view."""

    def __init__(self, streams: Sequence[Stream], pixels: Pixels | None = None) -> None:
        """Take the views and, where they are images and not cached maps, how a network sees them."""
        self.ids, self._streams, self.pixels = streams[0].ids, tuple(streams), pixels
        for number, stream in enumerate(streams):
            if not np.array_equal(stream.ids, self.ids):
                raise CacheError(f"view {number} has other images than view 0; run: make extract, then the same again")

    @property
    def views(self) -> int:
        """Return the number of views."""
        return len(self._streams)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of the first image."""
        return tuple(self._streams[0].read(np.zeros(1, np.intp)).shape[1:])

    def read(self, at: NDArray[np.intp], view: NDArray[np.intp]) -> NDArray[Any]:
        """Return image at[i] in view[i], (len(at), C, H, W)."""
        wanted = np.unique(view).tolist()
        if len(wanted) == 1:
            only: NDArray[Any] = self._streams[wanted[0]].read(at)
            return only
        pieces = {number: self._streams[number].read(at[view == number]) for number in wanted}
        out = np.empty((len(at), *pieces[wanted[0]].shape[1:]), pieces[wanted[0]].dtype)
        for number, piece in pieces.items():
            out[view == number] = piece
        return out


class Batch(NamedTuple):
    """Which images in which views, and how they are varied on the way in."""

    rows: NDArray[np.intp]  # (b,)
    view: NDArray[np.intp]  # (b,)
    mixed: float = 1.0  # share of the image itself in the mixture
    partner: NDArray[np.intp] | None = None  # (b,) places in the batch of the images that are mixed in
    kept: NDArray[np.bool_] | None = None  # (b, C) channels that are not dropped
    drawn: NDArray[np.float32] | None = None  # (b, NUMBERS) from [0, 1): how images are varied


def epoch_plan(
    rows: NDArray[np.intp],
    *,
    batch: int,
    views: int,
    channels: int,
    mixup: float,
    dropout: float,
    rng: np.random.Generator,
    drawn: NDArray[np.float32] | None = None,
) -> list[Batch]:
    """Return the batches of one epoch: all rows shuffled, one view drawn for each, in batches of nearly equal size.

    `mixup` is the Beta parameter of manifold mixup (Verma et al. 2019, arXiv:1806.05236), `dropout` the share of
    channels of the boundary's maps that an image loses (Tompson et al. 2015, arXiv:1411.4280), or of an image's pooled
    features; 0 switches either off. `drawn` (n, NUMBERS) says how each row is varied.
    """
    order = rng.permutation(rows)
    shown = rng.integers(views, size=len(order))
    plan = []
    for at in np.array_split(np.arange(len(order)), max(1, round(len(order) / batch))):
        share, partner, kept = 1.0, None, None
        if mixup:
            share, partner = float(rng.beta(mixup, mixup)), rng.permutation(len(at))
        if dropout:
            kept = rng.random((len(at), channels)) >= dropout
        plan.append(Batch(order[at], shown[at], share, partner, kept, None if drawn is None else drawn[order[at]]))
    return plan


def numbers(n: int, *, seed: int, training: int, epoch: int) -> NDArray[np.float32]:
    """Return how each of n images is varied in an epoch of a training, (n, NUMBERS) from [0, 1).

    Row i is the same for every n, and does not depend on which images are learned from.
    """
    rng = np.random.default_rng([seed, training, epoch, 1])  # apart from the generator that shuffles
    return rng.random((n, NUMBERS), dtype=np.float32)


def for_device(array: NDArray[Any], device: str) -> Tensor:
    """Return an array as a tensor in the memory of the host, pinned for a GPU, which fetches it while it works."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def batches(inputs: Inputs, plan: Iterable[Batch], device: str = "cpu") -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches of a plan with their rows, which a thread reads ahead, as `for_device` gives them."""

    def read(batch: Batch) -> Tensor:
        return for_device(inputs.read(batch.rows, batch.view), device)

    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming: deque[tuple[Batch, Future[Tensor]]] = deque()
        try:
            for batch in plan:
                coming.append((batch, pool.submit(read, batch)))
                if len(coming) > _AHEAD:
                    ready, future = coming.popleft()
                    yield ready, future.result()
            while coming:
                ready, future = coming.popleft()
                yield ready, future.result()
        finally:
            for _, future in coming:
                future.cancel()
