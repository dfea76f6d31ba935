"""Which run a comparison would choose."""

from __future__ import annotations

from collections.abc import Sequence

from models.metrics import METRICS
from models.runs.record import Run

__all__ = ["choose", "rank"]


def rank(run: Run) -> tuple[float, float, str]:
    """Return what sorts the best validation first, as in a comparison: area, log loss of equals, name."""
    held = run.predictions.part(test=False)
    area, loss = (float(METRICS[name](held.y, held.proba)) for name in ("roc_auc", "log_loss"))
    return (-area, loss, run.name)


def choose(runs: Sequence[Run]) -> Run:
    """Return the run of best validation of one or more."""
    return min(runs, key=rank)
