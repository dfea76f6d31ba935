"""Calibration in the large where nearly every probability is wrong, as of a model at another place."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from models.metrics import calibration_line


def test_the_intercept_is_found_however_far_off_the_probabilities_are() -> None:
    """The root of the likelihood equation, which undamped Newton steps run away from."""
    rng = np.random.default_rng(0)
    y = (np.arange(1000) < 11).astype(np.int64)
    odds = rng.normal(9, 4, 1000) + y
    line = calibration_line(y, expit(odds))
    assert np.isclose(line.intercept.value, brentq(lambda b: expit(b + odds).sum() - y.sum(), -40, 40), atol=1e-6)
    assert line.intercept.low < line.intercept.value < line.intercept.high < -10
