"""Scores by subgroup against the scores of these images alone, and tests that keep their level."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import FirnError
from models.metrics import calibration_line, delong, holm, score
from models.metrics.subgroups import COMPARED, in_bins, subgroup_tables

Ints = NDArray[np.int64]


def drawn(
    seed: int, worse: float = 0.0, patients: int = 120
) -> tuple[Ints, NDArray[np.float64], Ints, NDArray[np.str_]]:
    """Return y, proba, groups of two images, and the sex of each; the model sees women's images `worse`."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), 2)
    y, woman = groups % 2, groups // 2 % 2
    logit = 2 * (y - 0.5) * (2 - worse * woman) + random.normal(size=patients)[groups] + random.normal(size=len(y))
    p = 1 / (1 + np.exp(-logit))
    return y, np.stack([1 - p, p], axis=1), groups, np.where(woman, "woman", "man")


def test_a_subgroup_has_the_scores_of_its_images() -> None:
    y, proba, groups, sex = drawn(0)
    sex[:6] = ""
    ages = in_bins(np.r_[np.full(100, np.nan), np.linspace(0, 90, 140)], [18, 65])
    by_sex, by_age = subgroup_tables(
        y, proba, {"sex": sex, "age": ages}, groups, threshold=0.4, n_bootstrap=100, seed=2
    )
    assert [row.name for row in by_sex.rows] == ["man", "woman"] and by_sex.left_out == 6
    for row in by_sex.rows:
        at = sex == row.name
        expected = score(y[at], proba[at], groups[at], threshold=0.4, n_bootstrap=100, seed=2)
        assert row.scores == {name: expected[name] for name in COMPARED}
        assert row.calibration == calibration_line(y[at], proba[at, 1], groups[at])
        assert row.images == ((y[at] == 0).sum(), (y[at] == 1).sum())
        assert sum(row.groups) == len(np.unique(groups[at])) and not row.few
    assert by_age.left_out == 100
    assert [(row.name, row.few) for row in by_age.rows] == [
        ("18 to under 65", True),
        ("65 or more", True),
        ("under 18", True),
    ]
    every = [*by_sex.p_values.values(), *by_age.p_values.values()]
    assert [*by_sex.p_adjusted.values(), *by_age.p_adjusted.values()] == pytest.approx(holm(every).tolist())


def test_two_separate_subgroups_are_compared_as_by_delong() -> None:
    from scipy.stats import t

    y, proba, groups, sex = drawn(1, worse=1.0)
    (table,) = subgroup_tables(y, proba, {"sex": sex}, groups, n_bootstrap=4000)
    man, woman = (delong(y[sex == name], proba[sex == name, 1], groups[sex == name]) for name in ("man", "woman"))
    z = (man.auc[0] - woman.auc[0]) / np.sqrt(man.covariance[0, 0] + woman.covariance[0, 0])
    assert table.p_values["roc_auc"] == pytest.approx(2 * t.sf(abs(z), 58), rel=0.25)


def test_equal_subgroups_rarely_differ_and_unequal_ones_do() -> None:
    equal = np.array([_p_values(seed, 0.0) for seed in range(120)])
    assert ((equal < 0.05).mean(axis=0) <= 0.1).all()
    assert ((equal < 0.5).mean(axis=0) >= 0.3).all(), "the level is used"
    assert _p_values(0, 2.0)[0] < 0.001


def _p_values(seed: int, worse: float) -> list[float]:
    y, proba, groups, sex = drawn(seed, worse)
    return list(subgroup_tables(y, proba, {"sex": sex}, groups, n_bootstrap=100)[0].p_values.values())


def test_a_patient_in_several_subgroups_is_not_two() -> None:
    """Each patient has the same image from two devices: the scores are equal, and so surely that nothing is left."""
    y, proba, groups, _ = drawn(0)
    one = np.r_[0 : len(y) : 2]
    y, proba, groups = y[one], proba[one], groups[one]
    noisy = proba + np.random.default_rng(0).normal(size=(len(y), 1)) * 0.02 * [1, -1]
    both = np.clip(np.concatenate([proba, noisy]), 0.001, 0.999)
    both /= both.sum(axis=1, keepdims=True)
    device = np.repeat(["a", "b"], len(y))
    paired, apart = (
        subgroup_tables(np.tile(y, 2), both, {"device": device}, names, n_bootstrap=400)[0].p_values["roc_auc"]
        for names in (np.tile(groups, 2), None)
    )
    assert paired < apart


def test_what_cannot_be_compared_is_missing() -> None:
    y, proba, groups, sex = drawn(0)
    sex[:] = "woman"
    (table,) = subgroup_tables(y, proba, {"sex": sex}, groups, n_bootstrap=20)
    assert np.isnan(list(table.p_adjusted.values())).all() and len(table.rows) == 1
    sex[:60], sex[160:] = "man", "child"
    sex[(y == 1) & (sex == "child")] = "woman"
    of_two = np.isin(sex, ["woman", "man"])
    (three,) = subgroup_tables(y, proba, {"sex": sex}, groups, n_bootstrap=200)
    (two,) = subgroup_tables(y[of_two], proba[of_two], {"sex": sex[of_two]}, groups[of_two], n_bootstrap=200)
    assert three.p_values["sensitivity"] == pytest.approx(two.p_values["sensitivity"], abs=0.15), "children have none"
    with pytest.raises(FirnError, match="one value of sex an image"):
        subgroup_tables(y, proba, {"sex": sex[:4]}, groups)


def test_bins_say_their_bounds() -> None:
    assert in_bins([-1, 17.9, 18, 39, 40, 90, np.nan], [18, 40]).tolist() == [
        "under 18",
        "under 18",
        "18 to under 40",
        "18 to under 40",
        "40 or more",
        "40 or more",
        "",
    ]


def test_out_of_fold_subgroups_are_ranked_within_folds_and_counted_once() -> None:
    """Two repeats of the same predictions: as many images and patients, areas within folds, tests that know of it."""
    y, proba, groups, sex = drawn(3, worse=0.6)
    fold = groups // 4 % 5
    shifted = 1 / (1 + np.exp(-(np.log(proba[:, 1] / proba[:, 0]) + fold)))  # no common scale
    proba = np.stack([1 - shifted, shifted], axis=1)
    once, again = (
        subgroup_tables(
            np.tile(y, k),
            np.tile(proba, (k, 1)),
            {"sex": np.tile(sex, k)},
            np.tile(groups, k),
            folds=np.concatenate([fold, fold + 5])[: k * len(y)],
            threshold=np.tile(fold / 20 + 0.4, k),
            n_bootstrap=300,
        )[0]
        for k in (1, 2)
    )
    for row, twice in zip(once.rows, again.rows, strict=True):
        at = sex == row.name
        parts = [at & (fold == k) for k in range(5)]
        pairs = [(y[p] == 1).sum() * (y[p] == 0).sum() for p in parts]
        areas = [delong(y[p], proba[p, 1]).auc[0] for p in parts]
        assert row.scores["roc_auc"].value == pytest.approx(np.average(areas, weights=pairs))
        called = proba[:, 1] >= fold / 20 + 0.4
        assert row.scores["sensitivity"].value == pytest.approx(called[at & (y == 1)].mean())
        assert (twice.images, twice.groups) == (row.images, row.groups)
        for name in COMPARED:
            assert twice.scores[name] == pytest.approx(row.scores[name], abs=0.02), "repeats make no patients"
    assert again.p_values["roc_auc"] == pytest.approx(once.p_values["roc_auc"], rel=0.5)
