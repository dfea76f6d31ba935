"""Every row of HEADS: learns, gives probabilities, is saved without a pickle and comes back the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from features.errors import BadDataset, CacheError, ConstantFeatures, UnknownName
from features.progress import heard
from features.views import View
from models.explain.class_maps import CLASS_MAPS
from models.explain.run_maps import EXPLAINERS
from models.folds import grouped_folds
from models.heads import HEADS, HeadRow, choose_heads, linear, load_head, make_head, save_head
from models.heads.head import log_loss
from models.heads.linear import Discriminant, Logistic, probabilities
from models.heads.map_heads import MapHead
from models.logistic_path import strengths, sweep
from models.predictor.torch_heads import head_module
from models.validation.cross_validation import PROTOCOLS, fit, own_fold


def drawn(input_: str, classes: int = 2, n: int = 480, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X, y and groups of four rows each, with a signal in a few features."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n // 4), 4)
    y = rng.integers(0, classes, n // 4)[groups]
    X = rng.normal(size=(n, 12)).astype(np.float32) + rng.normal(size=(n // 4, 12)).astype(np.float32)[groups]
    X[np.arange(n), y] += 2.0
    if input_ == "maps":
        X = (np.repeat(X[:, :, None, None], 9, axis=2).reshape(n, 12, 3, 3) + rng.normal(size=(n, 12, 3, 3))).astype(
            np.float16
        )
    if input_ == "runs":  # two models that know something and one that knows nothing
        noise = rng.normal(size=(n, 3, classes)) + np.array([2.0, 1.0, 0.0])[:, None] * np.eye(classes)[y][:, None]
        X = np.exp(noise) / np.exp(noise).sum(axis=2, keepdims=True)
    return X, y, np.array([f"g{g}" for g in groups])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_learns_and_comes_back_the_same(name: str, classes: int, tmp_path: Path) -> None:
    """Probabilities are proper, better than chance on new groups, repeatable, and equal after saving and loading."""
    X, y, groups = drawn(HEADS[name].input, classes)
    fit = np.arange(len(y)) < 320
    new = ~fit
    head = make_head(name, seed=3).fit(X[fit], y[fit], groups[fit])
    proba = head.predict_proba(X[new])
    assert proba.shape == (new.sum(), classes)
    assert proba.dtype == np.float64
    assert np.array_equal(head.classes_, np.arange(classes))
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-9)
    auc = roc_auc_score(y[new], proba[:, 1]) if classes == 2 else roc_auc_score(y[new], proba, multi_class="ovr")
    assert auc > 0.7
    again = make_head(name, seed=3).fit(X[fit], y[fit], groups[fit])
    assert np.array_equal(again.predict_proba(X[new]), proba)
    save_head(tmp_path, name, head)
    loaded = load_head(tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(X[new]), proba, rtol=1e-9, atol=1e-12)
    assert loaded.chosen_ == head.chosen_
    assert not list(tmp_path.glob("*.pkl"))


def test_one_more_linear_head_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A further row is explained, exported, saved and loaded by the form that it names, without a word elsewhere."""
    monkeypatch.setitem(HEADS, "other", HeadRow(Discriminant, "linear", "one more"))
    X, y, groups = drawn("pooled", 3)
    maps = X[:, :, None, None] + np.zeros((1, 1, 2, 2), np.float32)
    head = make_head("other").fit(X, y, groups)
    save_head(tmp_path, "other", head)
    proba, form = load_head(tmp_path).predict_proba(X), HEADS["other"].form
    logits = head_module("other", head)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(probabilities(logits), proba, atol=1e-5)
    np.testing.assert_allclose(probabilities(CLASS_MAPS[form](head, maps).mean((2, 3))), proba, atol=1e-5)
    assert {name for name, row in HEADS.items() if row.form in CLASS_MAPS} == {*EXPLAINERS, "other"} - {"finetuned"}


def test_logistic_is_scikit_learns_optimum() -> None:
    """At the chosen strength the coefficients are those of scikit-learn on standardised features."""
    X, y, groups = drawn("pooled", 3)
    head = make_head("logistic").fit(X, y, groups)
    mean, std = X.mean(axis=0), X.std(axis=0)
    reference = LogisticRegression(C=head.chosen_["C"], tol=1e-10, max_iter=10_000).fit((X - mean) / std, y)
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba((X - mean) / std), atol=1e-3)


def test_lightgbm_reads_its_own_file(tmp_path: Path) -> None:
    """LightGBM's loader gives the same probabilities from the saved text."""
    X, y, groups = drawn("pooled")
    head = make_head("lightgbm").fit(X, y, groups)
    save_head(tmp_path, "lightgbm", head)
    booster = lightgbm.Booster(model_file=tmp_path / "lightgbm.txt")
    assert np.array_equal(booster.predict(X), head.predict_proba(X)[:, 1])


def test_class_maps_show_where_the_evidence_lies() -> None:
    """A signal at one position makes that position's vote the strongest."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6, 4, 4)).astype(np.float16)
    y = rng.integers(0, 2, 200)
    at = rng.integers(0, 4, (200, 2))
    X[np.arange(200), 2, at[:, 0], at[:, 1]] += (6 * y).astype(np.float16)
    head = make_head("map")
    assert isinstance(head, MapHead)
    votes = head.fit(X, y).class_maps(X)
    assert votes.shape == (200, 2, 4, 4)
    evidence = (votes[:, 1] - votes[:, 0])[y == 1].reshape(-1, 16)
    hit = evidence.argmax(axis=1) == (at[:, 0] * 4 + at[:, 1])[y == 1]
    assert hit.mean() > 0.9


def test_folds_keep_groups_together() -> None:
    """No group is in two folds, every fold has both classes, and the seed decides."""
    _, y, groups = drawn("pooled")
    folds = grouped_folds(y, groups, 5, seed=1)
    assert all(len(set(folds[groups == g])) == 1 for g in np.unique(groups))
    assert all(len(set(y[folds == f])) == 2 for f in range(5))
    assert np.array_equal(folds, grouped_folds(y, groups, 5, seed=1))
    assert not np.array_equal(folds, grouped_folds(y, groups, 5, seed=2))
    with pytest.raises(BadDataset, match=r"class number 0 .* 1 group left"):
        grouped_folds(y, np.where(y == 0, "only", groups), 5)


@pytest.mark.parametrize("name", HEADS)
def test_features_that_do_not_vary(name: str) -> None:
    """All alike: said in one line. One image that differs: learned from, also where folds lack it."""
    n = 30
    y, ids = np.arange(n) % 2, np.char.add("i", np.arange(n).astype(str))
    X = np.full({"pooled": (n, 512), "maps": (n, 64, 3, 3), "runs": (n, 3, 2)}[HEADS[name].input], 0.5, np.float32)
    view = View(X, y, ids, ids, np.where(np.arange(n) % 5 == 0, "test", "train"))
    with pytest.raises(ConstantFeatures, match=r"24 images to learn from have the same.*run: make doctor"):
        fit(partial(make_head, name), [view], PROTOCOLS["split"])
    X[-1] += 0.25
    proba = fit(partial(make_head, name), [view], PROTOCOLS["split"]).predictions.proba
    assert np.isfinite(proba).all()
    assert np.abs(proba[view.splits == "test"] - 0.5).max() < 0.2


def test_names_and_broken_folders(tmp_path: Path) -> None:
    """Unknown names are answered with the known ones, a folder without a head with the command."""
    assert choose_heads("lda, logistic") == ("logistic", "lda")
    assert choose_heads("all") == tuple(HEADS)
    with pytest.raises(UnknownName, match="did you mean lightgbm"):
        choose_heads("lightgmb")
    with pytest.raises(UnknownName, match="unknown head 'forest'"):
        make_head("forest")
    with pytest.raises(CacheError, match="run: make train-heads"):
        load_head(tmp_path)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_goes_through_all_folds_at_once(classes: int) -> None:
    """The nested choice is scikit-learn's: of each fold's strength by the other folds, of the last one by all."""
    X, y, groups = drawn("pooled", classes)
    folds = grouped_folds(y, groups, 5, seed=2)
    head = Logistic(seed=0)
    found = head.fit_folds(X, y, folds)
    assert found is not None
    held = own_fold(found, folds)
    grid = strengths(Logistic.steps)

    def fitted(rows: np.ndarray, C: float) -> Callable[[np.ndarray], np.ndarray]:
        mean, std = X[rows].mean(0), X[rows].std(0)
        model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit((X[rows] - mean) / std, y[rows])
        return lambda Z: model.predict_proba((Z - mean) / std)

    def loss(out: list[int], C: float) -> float:
        """Return the held-out loss over the folds that are not `out`, each by the model without it and `out`."""
        inner = [f for f in range(5) if f not in out]
        each = [log_loss(y[folds == f], fitted(~np.isin(folds, [*out, f]), C)(X[folds == f])) for f in inner]
        return float(np.average(each, weights=[(folds == f).sum() for f in inner]))

    for fold in (0, 3):
        best = grid[int(np.argmin([loss([fold], C) for C in grid]))]
        expected = fitted(folds != fold, best)(X[folds == fold])
        np.testing.assert_allclose(held[folds == fold], expected, atol=2e-3)
        pair = fitted(~np.isin(folds, [fold, 4]), best)(X[folds == 4])
        np.testing.assert_allclose(found[fold, folds == 4], pair, atol=5e-3)
    assert head.chosen_["C"] == grid[int(np.argmin([loss([], C) for C in grid]))]


def test_a_missing_certificate_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solutions cut short are counted in what the head says of itself, and told in a line; else neither."""
    X, y, groups = drawn("pooled")
    assert "not_certified" not in Logistic().fit(X, y, groups).chosen_
    monkeypatch.setattr(linear, "sweep", partial(sweep, max_iter=1))
    with heard() as lines:
        head = Logistic().fit(X, y, groups)
    assert head.chosen_["not_certified"] > 1
    assert "solutions are not certified, duality gap" in lines[-1]


def test_nested_predictions_do_not_know_their_own_labels() -> None:
    """Other labels in a fold leave the predictions for that fold as they were, and for others by models without it."""
    X, y, groups = drawn("pooled")
    folds = grouped_folds(y, groups, 5, seed=2)
    own = folds == 1
    first, second = (Logistic().fit_folds(X, labels, folds) for labels in (y, np.where(own, 1 - y, y)))
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first[1, own], second[1, own], atol=1e-3)
    np.testing.assert_allclose(first[1, ~own], second[1, ~own], atol=5e-3)  # solved to a wider gap
    assert np.abs(first[0, ~own] - second[0, ~own]).max() > 0.01
    assert Logistic().fit_folds(X, y, folds % 3) is None, "three folds: two left out leave too little"


def test_a_class_of_one_image_is_discriminated_without_a_warning() -> None:
    """A fold may leave one image of a small class to learn from."""
    X = np.random.default_rng(0).normal(size=(21, 4)).astype(np.float32)
    y = np.array([0] * 10 + [1] * 10 + [2])
    X[y == 2] += 5
    proba = make_head("lda").fit(X, y).predict_proba(X)
    assert proba.argmax(axis=1)[-1] == 2
