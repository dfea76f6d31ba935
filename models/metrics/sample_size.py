"""How many independent images a validation takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.metrics.bootstrap import quantile

FEWEST_OF_CLASS = 100  # events, and as many without (Vergouwe et al. 2005; Collins, Ogundimu & Altman 2016)
WIDTH = 0.1  # of the 95 % interval of the ROC AUC
RATIO_ERROR = 0.1  # standard error of log observed over expected: a factor of 1.2 either way
_MOST, _HIGHEST = 10**9, 0.95


class ValidationSize(NamedTuple):
    """The images that each aim takes, where each is independent of the others; patients, where they are not."""

    roc_auc: int  # an interval of WIDTH
    calibration: int  # observed over expected with RATIO_ERROR


def validation_size(prevalence: float, auc: float) -> ValidationSize:
    """Return how many independent images a validation takes, for a share of positives and a ROC AUC in 0 to 1.

    The closed forms of Riley et al. 2021 (Statistics in Medicine 40:4230): for observed over expected the variance
    (1 - prevalence) / (n prevalence), for the AUC that of Newcombe 2006, with an AUC above 0.95 taken as 0.95, for near
    1 the formula asks for a handful. Neither knows of groups, nor of the slope.
    """
    share, area = float(np.clip(prevalence, 1e-3, 1 - 1e-3)), float(np.clip(auc, 0.5, _HIGHEST))
    low, high = 4, _MOST
    while low < high:  # the standard error falls with n
        middle = (low + high) // 2
        low, high = (
            (low, middle) if _auc_error(middle, share, area) <= WIDTH / 2 / quantile(0.95) else (middle + 1, high)
        )
    return ValidationSize(low, int(np.ceil((1 - share) / (share * RATIO_ERROR**2))))


def _auc_error(n: int, share: float, area: float) -> float:
    half = n / 2 - 1
    pairs = 1 + half * (1 - area) / (2 - area) + half * area / (1 + area)
    return float(np.sqrt(area * (1 - area) * pairs / (n**2 * share * (1 - share))))
