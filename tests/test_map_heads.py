"""Heads on maps, ridge and stack, held against what they must equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference
from sklearn.metrics import roc_auc_score
from test_heads import drawn

from models.folds import grouped_folds
from models.heads import make_head
from models.heads.map_heads import MapHead, coarse, principal_channels
from models.heads.ridge import Ridge
from models.heads.stacking import Stack
from models.validation.cross_validation import own_fold


def test_principal_channels_are_a_rotation() -> None:
    """With all channels kept distances are those of standardised channels, and the leading ones hold the most."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(60, 8, 3, 3)) * np.arange(1, 9)[:, None, None] + 5).astype(np.float32)
    X[:, 3] += X[:, 2]
    X[:, 7] = 4.0  # a channel that says nothing
    every = principal_channels(X, 8)
    Z = every.project(X)
    assert Z.shape == (60, 8, 9)
    flat = X.transpose(0, 2, 3, 1).reshape(-1, 8)[:, :7]
    flat = (flat - flat.mean(0)) / flat.std(0)
    mine = Z.transpose(0, 2, 1).reshape(-1, 8)
    ratio = np.linalg.norm(mine[1:] - mine[:-1], axis=1) / np.linalg.norm(flat[1:] - flat[:-1], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    variance = mine.var(0)
    assert (np.diff(variance) < 1e-3).all()
    assert variance.mean() == pytest.approx(1, rel=0.02)
    few = principal_channels(X, 3).project(X).transpose(0, 2, 1).reshape(-1, 3)
    for i in range(3):
        assert abs(np.corrcoef(few[:, i], mine[:, i])[0, 1]) > 0.99


def test_map_head_votes_in_the_units_of_the_maps() -> None:
    """Its probabilities are log-mean-exp of a plain 1x1 convolution on the maps."""
    X, y, groups = drawn("maps")
    head = MapHead(seed=0).fit(X, y, groups)
    weights, bias = head.state()[1]["weights"], head.state()[1]["bias"]
    votes = np.einsum("kc,ncp->nkp", weights, X.reshape(len(X), 12, 9).astype(np.float64)) + bias[:, None]
    pooled = np.log(np.exp(votes).mean(2))
    expected = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-5)


def test_attention_looks_where_the_signal_is() -> None:
    """One position in nine carries the class; attention finds it, and the mean over positions is worse."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 6, 3, 3)).astype(np.float16)
    y = rng.integers(0, 2, 400)
    at = rng.integers(0, 9, 400)
    X.reshape(400, 6, 9)[np.arange(400), 1, at] += 6  # here is something ...
    X.reshape(400, 6, 9)[np.arange(400), 2, at] += (3 * y - 1.5).astype(np.float16)  # ... and this is what
    head = make_head("attention").fit(X[:300], y[:300])
    blind = make_head("logistic").fit(X[:300].mean((2, 3), dtype=np.float32), y[:300])
    assert roc_auc_score(y[300:], head.predict_proba(X[300:])[:, 1]) > 0.95
    assert roc_auc_score(y[300:], blind.predict_proba(X[300:].mean((2, 3), dtype=np.float32))[:, 1]) < 0.85


def test_spatial_sees_where() -> None:
    """A signal that only differs in its side is lost in the mean and found by the pyramid."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6, 6, 6)).astype(np.float16)
    y = rng.integers(0, 2, 300)
    X[y == 0, 2, :, :2] += 1
    X[y == 1, 2, :, 4:] += 1
    spatial = make_head("spatial").fit(X[:200], y[:200])
    blind = make_head("logistic").fit(X[:200].mean((2, 3), dtype=np.float32), y[:200])
    assert roc_auc_score(y[200:], spatial.predict_proba(X[200:])[:, 1]) > 0.95
    assert roc_auc_score(y[200:], blind.predict_proba(X[200:].mean((2, 3), dtype=np.float32))[:, 1]) < 0.7


@pytest.mark.parametrize("classes", [2, 3])
def test_ridge_is_scikit_learns(classes: int) -> None:
    """Up to the sigmoid the scores are those of scikit-learn's Ridge, at the penalty of least held-out error."""
    X, y, groups = drawn("pooled", classes)
    head = Ridge(seed=0).fit(X, y, groups)
    Z = (X - X.mean(0)) / X.std(0)
    targets = 2.0 * np.eye(classes)[y] - 1
    targets = targets[:, 1:] if classes == 2 else targets
    reference = Reference(alpha=head.chosen_["penalty"] * len(X)).fit(Z, targets)
    mine, theirs = head.decision_function(X), reference.predict(Z).reshape(len(X), -1)
    for column in range(mine.shape[1]):
        assert np.corrcoef(mine[:, column], theirs[:, column])[0, 1] == pytest.approx(1, abs=1e-6)
    folds = grouped_folds(y, groups, 5, seed=0)
    errors = []
    for penalty in Ridge.penalties:
        held = np.zeros_like(targets)
        for fold in range(5):
            own = folds == fold
            mean, std = X[~own].mean(0), X[~own].std(0)
            one = Reference(alpha=penalty * (~own).sum()).fit((X[~own] - mean) / std, targets[~own])
            held[own] = one.predict((X[own] - mean) / std).reshape(own.sum(), -1)
        errors.append(np.square(held - targets).mean())
    assert head.chosen_["penalty"] == pytest.approx(Ridge.penalties[int(np.argmin(errors))])
    assert head.chosen_["held_out_squared_error"] == pytest.approx(min(errors), rel=1e-4)


def test_ridge_keeps_its_ranking() -> None:
    """Few patients, held-out scores worse than chance: the sigmoid does not fall, and new patients are ranked right."""
    rng = np.random.default_rng(34)
    groups, y = np.repeat(np.arange(24), 10), rng.permutation(np.arange(24) % 2).repeat(10)
    new = np.arange(400).repeat(3)
    X, Z = (rng.normal(size=(g.max() + 1, 40))[g] + rng.normal(size=(len(g), 40)) for g in (groups, new))
    X[:, :4] += 0.5 * (2 * y[:, None] - 1)
    Z[:, :4] += 0.5 * (2 * (new % 2)[:, None] - 1)
    head = Ridge().fit(X.astype(np.float32), y, groups.astype(np.str_))
    assert roc_auc_score(new % 2, head.predict_proba(Z.astype(np.float32))[:, 1]) > 0.6


def test_stack_weighs_by_worth() -> None:
    """The model that knows nothing has next to no vote; the stack is no worse than the best; equal models share."""
    X, y, groups = drawn("runs")
    head = Stack().fit(X[:320], y[:320], groups[:320])
    first, second, third = head.chosen_["weights"]
    assert first > second > third >= 0
    stacked, best = head.predict_proba(X[320:]), X[320:, 0]
    new = y[320:]
    assert roc_auc_score(new, stacked[:, 1]) >= roc_auc_score(new, best[:, 1])
    twins = Stack().fit(X[:320, [0, 0]], y[:320])
    assert twins.chosen_["weights"][0] == pytest.approx(twins.chosen_["weights"][1], abs=1e-3)
    assert np.isfinite(head.predict_proba(np.array([[[1.0, 0.0]] * 3]))).all()


@pytest.mark.parametrize("name", ["ridge", "spatial"])
def test_all_folds_at_once(name: str) -> None:
    """Other labels in a fold leave the predictions for it as they were, and the head is that of all rows."""
    X, y, groups = drawn({"ridge": "pooled", "spatial": "maps"}[name])
    folds = grouped_folds(y, groups, 5, seed=2)
    own = folds == 1
    heads = [make_head(name), make_head(name)]
    first, second = (
        head.fit_folds(X, labels, folds)  # type: ignore[attr-defined]
        for head, labels in zip(heads, (y, np.where(own, 1 - y, y)), strict=True)
    )
    np.testing.assert_allclose(first[1, own], second[1, own], atol=1e-3)
    np.testing.assert_allclose(first[1, ~own], second[1, ~own], atol=5e-3)  # solved to a wider gap
    assert np.abs(first[0, ~own] - second[0, ~own]).max() > 0.01
    assert roc_auc_score(y, own_fold(first, folds)[:, 1]) > 0.8
    whole = heads[0].predict_proba(X)[:, 1]
    alone = make_head(name, seed=0).fit(X, y, groups).predict_proba(X)[:, 1]
    assert np.corrcoef(whole, alone)[0, 1] > 0.98


@pytest.mark.parametrize("name", ["map", "attention"])
def test_large_maps_are_seen_in_parts(name: str) -> None:
    """Maps of 13 x 13 give what their means over 7 x 7 parts give."""
    X, y, groups = drawn("maps", n=120)
    large = np.kron(X.astype(np.float32), np.ones((1, 1, 5, 5), np.float32))[:, :, :13, :13]
    parts = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(large), 7).numpy()
    assert np.array_equal(coarse(X), X)
    np.testing.assert_allclose(coarse(large), parts, atol=1e-5)
    head = make_head(name).fit(large, y, groups)
    np.testing.assert_allclose(head.predict_proba(large), head.predict_proba(parts), atol=1e-4)
    if isinstance(head, MapHead):
        assert head.class_maps(large).shape == (120, 2, 13, 13)


def test_ridge_with_few_images_and_features_that_only_some_have() -> None:
    """A feature that is constant without two folds does not spoil the solution for the others."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    folds = np.arange(40) // 8
    X = np.maximum(rng.normal(size=(40, 600)) - 2.2, 0).astype(np.float32)  # most are seen in one image or two
    X[:, :60] += (y[:, None] + 0.3 * rng.normal(size=(40, 60))).astype(np.float32)
    held = Ridge().fit_folds(X, y, folds)
    assert held is not None
    assert np.isfinite(held).all()
    assert roc_auc_score(y, own_fold(held, folds)[:, 1]) > 0.8
