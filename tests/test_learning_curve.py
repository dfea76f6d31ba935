"""The learning curve: who learns from what, and what the verb leaves behind."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from test_heads import drawn
from verbs_for_tests import compare, extract, train_heads
from verbs_for_tests import learning_curve as verb

from features.errors import BadDataset
from features.views import View
from models.folds import grouped_folds
from models.heads import make_head
from models.metrics import METRICS
from models.validation.learning_curve import REPEATS, draw_order, learning_curve, sizes


def a_view(n: int = 400) -> View:
    X, y, groups = drawn("pooled", n=n)
    return View(X, y, np.array([f"p{i:03d}" for i in range(n)]), groups, np.full(n, "train"))


def test_parts_grow_by_whole_groups_in_proportion() -> None:
    """The first m groups hold the classes in proportion, whatever m, and no group is cut."""
    y = np.repeat(np.arange(200) % 4 == 0, 3).astype(np.int64)  # a quarter of the groups is positive
    groups = np.repeat([f"g{i}" for i in range(200)], 3)
    rank = draw_order(y, groups, seed=1)
    assert sorted(set(rank)) == list(range(200))
    assert all(len(set(rank[groups == g])) == 1 for g in ("g0", "g7"))
    for m in (8, 20, 60, 200):
        assert abs((y[rank < m]).mean() - 0.25) <= 1 / m
    assert not np.array_equal(rank, draw_order(y, groups, seed=2))


def test_more_patients_are_better() -> None:
    """The area rises with the groups; the last point learns from all that five folds leave; every image counts."""
    view = a_view()
    points = learning_curve(lambda: make_head("lda"), view, seed=0)
    counts = [point.groups for point in points]
    assert counts == sizes(view, grouped_folds(view.y, view.groups, 5, seed=0))
    assert counts == sorted(counts)
    assert counts[-1] == 80
    assert points[-1].images == pytest.approx(320)
    areas = [METRICS["roc_auc"](point.predictions.y, point.predictions.proba) for point in points]
    assert areas[-1] > areas[0] + 0.03
    assert all(len(point.predictions.y) == REPEATS * 400 for point in points)
    with pytest.raises(BadDataset, match=r"class number \d \(from 0\) has \d groups? left .* and 5 are needed"):
        learning_curve(lambda: make_head("lda"), a_view(24))


def test_held_out_images_are_not_learned_from() -> None:
    """A head only ever sees groups of other folds, and nested parts of them."""
    view, seen = a_view(200), []

    class Spy:
        def fit(self, X, y, groups):  # type: ignore[no-untyped-def]
            self.groups = set(groups)
            return self

        def predict_proba(self, X):  # type: ignore[no-untyped-def]
            seen.append((self.groups, {g for x in X for g in view.groups[(x == view.X).all(1)]}))
            return np.full((len(X), 2), 0.5)

    points = learning_curve(Spy, view, seed=0)  # type: ignore[arg-type]
    assert all(not learned & held for learned, held in seen)
    per_fold = len(points)
    for i in range(0, len(seen), per_fold):
        parts = [learned for learned, _ in seen[i : i + per_fold]]
        assert [len(part) for part in parts] == [point.groups for point in points]
        assert all(a < b for a, b in pairwise(parts))


def test_the_verb_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes JSON and plots beside the page, which shows the curve as long as the images are the same."""
    folder = draw(tmp_path / "spots", per_class=30, test=6)
    extract(str(folder), "squeezenet1_1")
    train_heads(str(folder), "squeezenet1_1", heads="knn")
    assert 'data-figure="learning"' not in Path(compare(str(folder))).read_text()
    paths = [Path(p) for p in verb(str(folder), "squeezenet1_1", heads="knn stack")]
    assert [p.name for p in paths] == ["learning-curve.svg", "learning-curve.png", "learning-curve.json"]
    content = json.loads(paths[-1].read_text())
    (curve,) = content["curves"]
    assert curve["name"] == "knn on squeezenet1_1 features.12 avg"
    assert curve["points"][-1]["groups"] == 48, "test images have no part in it"
    said = capsys.readouterr()
    assert "ROC AUC" in said.out
    assert "stack is left out: it learns from other runs" in said.err
    assert 'data-figure="learning"' in Path(compare(str(folder))).read_text()
    paths[-1].write_text(json.dumps(content | {"manifest": "of other images"}))
    assert 'data-figure="learning"' not in Path(compare(str(folder))).read_text()
