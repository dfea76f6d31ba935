"""Minibatch training with early stopping on held-out groups, for heads that torch trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.folds import held_out

if TYPE_CHECKING:
    from torch import Tensor

MOST_EPOCHS, PATIENCE, BATCH = 60, 5, 128


def train_until_stale(
    optimiser: Any,
    loss: Callable[[NDArray[np.intp]], Tensor],
    parameters: Sequence[Tensor],
    y: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    *,
    seed: int,
) -> int:
    """Run epochs until the loss of a grouped fifth of the rows has not fallen for PATIENCE epochs; return how many.

    `loss` maps row numbers to their mean loss. The parameters end as they were after the best epoch.
    """
    import torch

    held = held_out(y, groups, seed=seed)
    train, watched = np.flatnonzero(~held), np.flatnonzero(held)
    rng = np.random.default_rng(seed)
    best, epoch_of_best, kept = np.inf, 0, [p.detach().clone() for p in parameters]
    for epoch in range(1, MOST_EPOCHS + 1):
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            optimiser.zero_grad()
            loss(np.sort(order[start : start + BATCH])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            pieces = np.array_split(watched, max(1, len(watched) // (4 * BATCH)))
            now = sum(float(loss(piece)) * len(piece) for piece in pieces) / len(watched)
        if now < best:
            best, epoch_of_best, kept = now, epoch, [p.detach().clone() for p in parameters]
        if epoch - epoch_of_best >= PATIENCE:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return epoch_of_best
