"""Predictions by patient, spelled out."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import FirnError, UnknownName
from models.metrics.subgroups import AGGREGATES, predictions_by_group


def test_images_of_a_patient_are_put_together() -> None:
    y, groups = np.array([0, 1, 0, 0, 1]), np.array(["b", "b", "a", "a", "c"])
    positive = np.array([0.2, 0.6, 0.1, 0.3, 1.0])
    proba = np.stack([1 - positive, positive], axis=1)
    expected = {"mean": [0.2, 0.4, 1], "maximum": [0.3, 0.6, 1], "noisy-or": [1 - 0.9 * 0.7, 1 - 0.8 * 0.4, 1]}
    assert list(expected) == list(AGGREGATES)
    for how, values in expected.items():
        found = predictions_by_group(y, proba, groups, how)
        assert found.groups.tolist() == ["a", "b", "c"] and found.images.tolist() == [2, 2, 1]
        assert found.y.tolist() == [0, 1, 1], "positive where any image is"
        assert found.mixed == 1, "b"
        assert found.proba[:, 1] == pytest.approx(values) and found.proba.sum(axis=1) == pytest.approx(1)


def test_more_classes_have_means_of_groups_of_one_class() -> None:
    proba = np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    found = predictions_by_group([2, 2, 0], proba, [7, 7, 3])
    np.testing.assert_allclose(found.proba, [[1, 0, 0], [0.3, 0.3, 0.4]])
    assert found.y.tolist() == [0, 2] and found.mixed == 0
    mixed = predictions_by_group([2, 1, 0], proba, [7, 7, 3])
    assert (mixed.groups.tolist(), mixed.y.tolist(), mixed.mixed) == ([3], [0], 1)
    with pytest.raises(FirnError, match="AGGREGATE=maximum is for two classes"):
        predictions_by_group([2, 2, 0], proba, [7, 7, 3], "maximum")
    with pytest.raises(UnknownName, match="did you mean mean"):
        predictions_by_group([2, 2, 0], proba, [7, 7, 3], "meen")
