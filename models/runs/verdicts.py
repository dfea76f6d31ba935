"""Is a run worse than the chosen one, or can the pictures not tell?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from models.metrics import PairedTest, bootstrap_test, delong_test, holm
from models.runs.scores import LEVEL, as_dict, number
from models.validation.predictions import Predictions

__all__ = ["ALPHA", "CHOICE", "against_the_first", "paired", "verdicts"]

CHOICE = "roc_auc"  # the metric by which validation chooses
ALPHA = 0.05  # of the corrected tests


def against_the_first(parts: Sequence[Predictions], *, seed: int, n_bootstrap: int) -> list[dict[str, Any] | None]:
    """Compare the first predictions with each of the others, corrected by Holm; None for the first."""
    test = partial(paired, parts[0], seed=seed, n_bootstrap=n_bootstrap)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [None, *verdicts(list(threads.map(test, parts[1:])))]


def verdicts(tests: Sequence[PairedTest]) -> list[dict[str, Any]]:
    """Return differences and verdicts of several tests, corrected together by Holm, ready for JSON."""
    adjusted = holm([test.p_value for test in tests]).tolist()
    return [_verdict(test, p) for test, p in zip(tests, adjusted, strict=True)]


def paired(chosen: Predictions, other: Predictions, *, seed: int, n_bootstrap: int) -> PairedTest:
    """Test the difference other - chosen in ROC AUC, on the same pictures."""
    if chosen.proba.shape[1] == 2:
        return delong_test(chosen.y, other.proba[:, 1], chosen.proba[:, 1], chosen.groups, level=LEVEL)
    return bootstrap_test(
        CHOICE,
        chosen.y,
        other.proba,
        chosen.proba,
        chosen.groups,
        n_bootstrap=n_bootstrap,
        level=LEVEL,
        seed=seed,
    )


def _verdict(test: PairedTest, adjusted: float) -> dict[str, Any]:
    distinguishable = bool(adjusted < ALPHA)  # NaN, where the pictures cannot tell, is not
    side = "higher" if test.difference.value > 0 else "lower"
    return {
        "difference": as_dict(test.difference),
        "p_value": number(test.p_value),
        "p_adjusted": number(adjusted),
        "distinguishable": distinguishable,
        "verdict": side if distinguishable else "tie",
    }
