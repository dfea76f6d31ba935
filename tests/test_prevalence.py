"""Probabilities at another prevalence and by patient, against Bayes' rule spelled out and known worlds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import FirnError
from models.metrics.thresholds import at_prevalence, estimated_prevalence

Floats = NDArray[np.float64]


def posterior(x: Floats, shares: Floats) -> Floats:
    """Return the right probabilities (n, K) of classes that are normal around 0, 2, 4 ..., by Bayes' rule."""
    density = np.exp(-np.square(x[:, None] - 2 * np.arange(len(shares))) / 2) * shares
    return density / density.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_probabilities_follow_the_prevalence(shares: tuple[float, ...]) -> None:
    random, k = np.random.default_rng(0), len(shares)
    trained, target = np.array(shares), np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    y = random.choice(k, 6000, p=target)
    x = random.normal(size=6000) + 2 * y
    given = posterior(x, trained)
    assert at_prevalence(given, trained, target) == pytest.approx(posterior(x, target), abs=1e-12)
    found = estimated_prevalence(given, trained)
    assert found == pytest.approx(np.bincount(y) / 6000, abs=0.02)
    likelihood = [np.log((given * (s / trained)).sum(axis=1)).sum() for s in (found, trained, np.roll(found, 1))]
    assert likelihood[0] > max(likelihood[1:])


def test_a_certain_image_stays_certain() -> None:
    proba = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    assert at_prevalence(proba, [0.5, 0.5], [1.0, 0.0]).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert at_prevalence(proba, [0.3, 0.7], [0.3, 0.7]) == pytest.approx(proba)


@pytest.mark.parametrize(
    ("trained", "target", "words"),
    [
        ([0.0, 1.0], [0.5, 0.5], "above 0"),
        ([0.5, 0.5], [0.5, 0.6], "sum to 1"),
        ([0.5, 0.5], [0.2, 0.3, 0.5], "2 class shares"),
    ],
)
def test_bad_shares_are_said(trained: list[float], target: list[float], words: str) -> None:
    with pytest.raises(FirnError, match=words):
        at_prevalence([[0.5, 0.5]], trained, target)
