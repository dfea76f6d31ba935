"""Who saw what: protocols, repeats, stacks, joined views and the search, end to end on drawn images."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import draw, stored
from test_heads import drawn
from verbs_for_tests import bundle, compare, extract, selected, train_heads

from features.errors import BadDataset, CacheError, FirnError, UnknownName
from features.views import View
from models.heads import make_head
from models.heads.stacking import vote_out_of_fold
from models.metrics import METRICS
from models.runs.nesting import pair_predictions
from models.runs.record import load_run, load_runs
from models.validation.cross_validation import PROTOCOLS, OutOfTime, fit, folds_of, without_pairs
from models.validation.predictions import Predictions, load_predictions, save_predictions


class Witness:
    """A head that remembers the groups it was fitted on."""

    seen: list[set[str]] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.classes_, self.chosen_ = np.arange(2), {}

    def fit(self, X, y, groups=None):  # type: ignore[no-untyped-def]
        self.seen.append(set(groups))
        self.code = len(self.seen)
        return self

    def predict_proba(self, X):  # type: ignore[no-untyped-def]
        return np.tile([1 - self.code / 100, self.code / 100], (len(X), 1))


def a_view() -> View:
    X, y, groups = drawn("pooled", n=240)
    splits = np.where(np.arange(len(y)) < 160, "train", "test")
    return View(X, y, np.array([f"p{i:03d}" for i in range(len(y))]), groups, splits)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nobody_predicts_what_it_has_seen(name: str) -> None:
    """Every image is predicted once a repeat, by a fit that saw none of its group; test groups are never seen."""
    protocol, view = PROTOCOLS[name], a_view()
    Witness.seen = []
    found = fit(Witness, [view], protocol, seed=1)  # type: ignore[arg-type]
    p = found.predictions
    images = 160 if protocol.tests else 240
    held, tested = p.part(test=False), p.part(test=True)
    assert len(held.y) == protocol.repeats * images
    assert len(tested.y) == (80 if protocol.tests else 0)
    assert all(sorted(held.ids[r * images : (r + 1) * images]) == sorted(set(held.ids)) for r in range(1))
    for row in range(len(held.y)):
        which = round(100 * held.proba[row, 1]) - 1
        assert which == held.fold[row]
        assert held.groups[row] not in Witness.seen[which]
    assert len(Witness.seen) == 5 * protocol.repeats + 1
    assert Witness.seen[-1] == set(held.groups)
    assert not any(set(tested.groups) & seen for seen in Witness.seen)
    repeats = folds_of(view.y, view.groups, PROTOCOLS["cv"], seed=1)
    assert [int(f.min()) for f in repeats] == [0, 5, 10]
    assert not np.array_equal(repeats[0], repeats[1] - 5)


def test_a_pair_of_folds_is_left_out_together() -> None:
    """What is said of a row without a fold is said by a head that has seen neither that fold nor the row's own."""
    view = a_view().take(a_view().splits == "train")
    (folds,) = folds_of(view.y, view.groups, PROTOCOLS["split"], seed=1)
    Witness.seen = []
    found = without_pairs(Witness, view, folds, lambda done, total: None)  # type: ignore[arg-type]
    assert found is not None
    assert len(Witness.seen) == 10
    for fold in range(5):
        for row in np.flatnonzero(folds != fold):
            seen = Witness.seen[round(100 * found[fold, row, 1]) - 1]
            assert seen == set(view.groups[(folds != fold) & (folds != folds[row])])
    assert without_pairs(Witness, view, folds % 3, lambda done, total: None) is None  # type: ignore[arg-type]


def test_a_stack_does_not_know_the_labels_that_it_is_scored_on() -> None:
    """Other labels in a fold leave the vote on that fold as it was; in a plain stack they change its weights."""
    view = a_view().take(a_view().splits == "train")
    (folds,) = folds_of(view.y, view.groups, PROTOCOLS["split"], seed=1)
    own, votes = folds == 2, []
    for y in (view.y, np.where(own, 1 - view.y, view.y)):
        found = []
        for name, X in (("ridge", view.X), ("lda", view.X[:, ::2])):
            part = without_pairs(partial(make_head, name), view._replace(X=X, y=y), folds, lambda done, total: None)
            assert part is not None
            held = np.zeros((len(y), 2))
            for fold in range(5):
                at = folds == fold
                held[at] = make_head(name).fit(X[~at], y[~at], view.groups[~at]).predict_proba(X[at])
            found.append((held, part.swapaxes(0, 1)))
        X = np.stack([held for held, _ in found], axis=1)
        nested_pairs = [pair for _, pair in found]
        votes += [vote_out_of_fold(X, pairs, y, folds)[own] for pairs in (nested_pairs, [None, None])]
    nested, plain, nested_after, plain_after = votes
    np.testing.assert_allclose(nested, nested_after, atol=1e-6)
    assert np.abs(plain - plain_after).max() > 0.005


class LeastSquares(Witness):
    """A quick head: ridge regression with a fixed penalty."""

    def fit(self, X, y, groups=None):  # type: ignore[no-untyped-def]
        Z, self.mean = X - X.mean(axis=0), X.mean(axis=0)
        self.weights = np.linalg.solve(Z.T @ Z + 0.1 * len(Z) * np.eye(X.shape[1]), Z.T @ (y - y.mean()))
        return self

    def predict_proba(self, X):  # type: ignore[no-untyped-def]
        positive = 1 / (1 + np.exp(-4 * (X - self.mean) @ self.weights))
        return np.stack([1 - positive, positive], axis=1)


def test_a_stack_of_noise_is_worth_nothing() -> None:
    """Of noise in patients with images of both classes a nested stack makes 0.5, a plain one chooses what fits."""
    areas = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(16), 6)
        y = (rng.random(96) < rng.beta(0.7, 0.7, 16)[groups]).astype(np.int64)
        X = rng.normal(size=(16, 4, 6))[groups] + 0.3 * rng.normal(size=(96, 4, 6))
        names = groups.astype(np.str_)
        (folds,) = folds_of(y, names, PROTOCOLS["split"], seed=seed)
        held, pairs = np.zeros((96, 4, 2)), []
        for m in range(4):
            part = View(X[:, m], y, names, names, names)
            found = without_pairs(LeastSquares, part, folds, lambda done, total: None)  # type: ignore[arg-type]
            pairs.append(None if found is None else found.swapaxes(0, 1))
            for fold in range(5):
                own = folds == fold
                held[own, m] = LeastSquares().fit(X[~own, m], y[~own]).predict_proba(X[own, m])
        votes = [vote_out_of_fold(held, way, y, folds) for way in (pairs, [None] * 4)]
        areas.append([METRICS["roc_auc"](y, proba, folds=folds) for proba in votes])
    nested, gaps = np.transpose(areas)[0], np.diff(areas, axis=1)
    assert abs(nested.mean() - 0.5) < 2.5 * nested.std() / len(areas) ** 0.5
    assert gaps.mean() > 2.5 * gaps.std() / len(areas) ** 0.5


def test_time_is_up() -> None:
    """Past its time a fit stops after the fold at hand."""
    Witness.seen = []
    with pytest.raises(OutOfTime):
        fit(Witness, [a_view()], PROTOCOLS["split"], until=time.monotonic())  # type: ignore[arg-type]
    assert len(Witness.seen) == 1


def test_a_class_without_training_images() -> None:
    """A class that only the test split has cannot be learned, and the message says so."""
    view = a_view()
    y = np.where(view.splits == "test", view.y, 0)
    with pytest.raises(BadDataset, match="no training image"):
        fit(lambda: make_head("lda"), [view._replace(y=y)], PROTOCOLS["split"])


@pytest.fixture
def drawn_set(tmp_path: Path) -> str:
    folder = draw(tmp_path / "spots", per_class=24, test=8)
    extract(str(folder), "squeezenet1_1", maps="1")
    return str(folder)


def test_cross_validation_and_its_stack(drawn_set: str) -> None:
    """PROTOCOL=cv uses all images, keeps to folders of its own, corrects for the choice, and its stack is nested."""
    lines = train_heads(drawn_set, "squeezenet1_1", heads="lda knn stack", protocol="cv")
    assert [line.split()[1] for line in lines] == ["lda", "knn", "stack"]
    runs = {run.record.head: run for run in load_runs(stored("spots"), protocol="cv")}
    assert not load_runs(stored("spots"))
    stack = runs["stack"]
    assert stack.record.repeats == 3
    assert len(stack.predictions.y) == 3 * 64
    assert stack.record.nested == 2
    pairs = pair_predictions(runs["lda"], runs["lda"].record.data)
    assert pairs is not None
    assert pairs.shape == (3 * 64, 5, 2)
    inputs = np.stack([run.predictions.proba for run in (runs["knn"], runs["lda"])], axis=1)
    plain = vote_out_of_fold(inputs[:64], [None, None], stack.predictions.y[:64], stack.predictions.fold[:64])
    assert not np.allclose(plain, stack.predictions.proba[:64], atol=1e-6)
    assert np.array_equal(stack.predictions.fold, runs["lda"].predictions.fold)
    page = Path(compare(drawn_set, protocol="cv"))
    results = json.loads((page.parent / "results.json").read_text())
    assert page.parent.name == f"{stored('spots')}-cv"
    counts = results["dataset"]["images"]
    assert (counts["validation"], counts["test"]) == (64, 0)
    assert results["corrected"]["value"] <= results["runs"][0]["validation"]["roc_auc"]["value"] + 0.01
    assert "PROTOCOL=cv" in results["commands"][-1]
    assert any("HEADS=stack" in command for command in results["commands"])
    assert "3 times over" in results["protocol"][0]
    assert results["protocol"][0].endswith("by models that had seen neither.")
    with pytest.raises(CacheError, match=r"no trained heads of spots-\w+ yet"):
        compare(drawn_set)
    with pytest.raises(UnknownName, match="unknown protocol"):
        train_heads(drawn_set, "squeezenet1_1", protocol="loo")


def test_folds_and_repeats_that_are_asked_for(drawn_set: str) -> None:
    """They are part of the run, its place and its words; more folds than a class has groups are refused in time."""
    train_heads(drawn_set, "squeezenet1_1", heads="lda knn stack", folds=3, repeats=2)
    runs = load_runs(stored("spots"), folds=3, repeats=2)
    assert [(run.record.folds, run.record.repeats) for run in runs] == [(3, 2)] * 3
    held = runs[0].predictions.part(test=False)
    assert np.bincount(held.fold).min() >= 1
    assert (int(held.fold.max()), len(held.ids)) == (5, 2 * len(set(held.ids)))
    assert not load_runs(stored("spots"))
    page = Path(compare(drawn_set, folds=3, repeats=2))
    assert page.parent.name == f"{stored('spots')}-3-folds-2-repeats"
    results = json.loads((page.parent / "results.json").read_text())
    assert all("FOLDS=3 REPEATS=2" in command for command in results["commands"] if "extract" not in command)
    assert "trained 3 times" in results["protocol"][0]
    assert "2 times over" in results["protocol"][0]
    with pytest.raises(BadDataset, match=r"FOLDS=25 needs as many groups \(image\) .* class normal has 24"):
        train_heads(drawn_set, "squeezenet1_1", heads="lda", folds=25)
    with pytest.raises(FirnError, match="expected FOLDS= to be 2 or more"):
        train_heads(drawn_set, "squeezenet1_1", heads="lda", folds=1)


def test_the_spread_over_seeds(
    drawn_set: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further seeds change no prediction; they vary the head where it draws, else the folds, and are trained once."""
    lines = train_heads(drawn_set, "squeezenet1_1", heads="knn mlp")
    folders = [Path(line.split()[-1]) for line in lines]
    before = [(folder / "predictions.csv").read_bytes() for folder in folders]
    calls = []

    def noted(make, views, protocol, *, seed, **how):  # type: ignore[no-untyped-def]
        calls.append((make().seed, seed))
        return fit(make, views, protocol, seed=seed, **how)

    monkeypatch.setattr("models.runs.features.fit", noted)
    train_heads(drawn_set, "squeezenet1_1", heads="knn mlp", seeds=3)
    assert calls == [(1, 1), (2, 2), (1, 0), (2, 0)], "seeds of head and folds; those of a head that draws keep folds"
    assert [(folder / "predictions.csv").read_bytes() for folder in folders] == before
    knn, mlp = (load_run(folder) for folder in folders)
    (told, drawn_at_random) = (run.record.spread or {} for run in (knn, mlp))
    assert (told["of"], drawn_at_random["of"], told["seeds"]) == ("folds", "head", [0, 1, 2])
    for run in (knn, mlp):
        spread = run.record.spread or {}
        for part in ("validation", "test"):
            own = run.predictions.part(test=part == "test")
            values = spread[part]["values"]
            assert values[0] == METRICS["roc_auc"](own.y, own.proba, folds=own.fold)
            assert spread[part]["sd"] == pytest.approx(np.std(values, ddof=1))
            assert (spread[part]["min"], spread[part]["max"]) == (min(values), max(values))
    stamps = [(folder / "run.json").stat().st_mtime_ns for folder in folders]
    train_heads(drawn_set, "squeezenet1_1", heads="knn mlp", seeds=2)
    assert [(folder / "run.json").stat().st_mtime_ns for folder in folders] == stamps
    page = Path(compare(drawn_set))
    assert "SD over" in capsys.readouterr().out
    assert "SD over 3 seeds" in page.read_text()
    results = json.loads((page.parent / "results.json").read_text())
    assert {row["head"]: row["spread"]["of"] for row in results["runs"]} == {"knn": "folds", "mlp": "head"}
    assert "2 of 2 runs were trained with several seeds, 3 at most" in results["protocol"][0]
    assert any("SEEDS=3" in command for command in results["commands"])
    with pytest.raises(FirnError, match="leave one of them away"):
        train_heads(drawn_set, "squeezenet1_1", heads="knn", seeds=2, budget=5)


def test_a_stack_is_trained_again_when_a_base_changes(drawn_set: str) -> None:
    """It combines what is there: no new run, no new stack; one more base, one more stack."""
    with pytest.raises(CacheError, match="a stack needs 2 trained heads"):
        train_heads(drawn_set, "squeezenet1_1", heads="lda stack")
    (folder,) = (line.split()[-1] for line in train_heads(drawn_set, "squeezenet1_1", heads="lda knn stack")[-1:])
    stamp = (Path(folder) / "run.json").stat().st_mtime_ns
    train_heads(drawn_set, "squeezenet1_1", heads="lda knn stack")
    assert (Path(folder) / "run.json").stat().st_mtime_ns == stamp
    train_heads(drawn_set, "squeezenet1_1", heads="lda", pool="gem")
    again = train_heads(drawn_set, "squeezenet1_1", heads="stack")[-1].split()[-1]
    facts = json.loads((Path(again) / "run.json").read_text())
    assert len(facts["bases"]) == 3
    saved = load_predictions(Path(again) / "predictions.csv", ("normal", "spot"))
    np.testing.assert_allclose(saved.proba.sum(1), 1)


def test_a_joined_view(
    drawn_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BACKBONE=a+b is one view of both, wider than either; map heads say that they need one backbone."""
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("FIRN_WEIGHTS", str(weights))
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), weights / "resnet18.pth")
    extract(drawn_set, "squeezenet1_1+resnet18", maps="1")
    terms = "squeezenet1_1 resnet18 squeezenet1_1+resnet18"
    lines = train_heads(drawn_set, terms, heads="knn map", pool="both")
    facts = [json.loads((Path(line.split()[-1]) / "run.json").read_text()) for line in lines]
    assert [f["head"] for f in facts] == ["knn", "map", "knn", "map", "knn"]
    assert facts[4]["features"] == facts[0]["features"] + facts[2]["features"]
    assert facts[4]["backbone"] == "squeezenet1_1+resnet18"
    assert len(facts[4]["keys"]) == 2
    told = capsys.readouterr().err
    assert "map on squeezenet1_1+resnet18 is left out: it needs feature maps of one backbone" in told
    compare(drawn_set, backbone="squeezenet1_1+resnet18")


def test_search_within_a_budget(drawn_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A search tries many views with one head, other heads on the best, stacks, and goes on from what is there."""
    lines = train_heads(drawn_set, "squeezenet1_1", heads="knn mlp stack", budget=600)
    assert lines[0].split()[1] == "stack"
    assert load_run(Path(lines[0].split()[-1])).record.nested == 0, "nesting has no time limit"
    views = {run.record.view for run in load_runs(stored("spots"))}
    assert {"features.12 avg", "features.12 gem", "features.8+features.12 avg", "features.12 grid2"} <= views
    heads = [run.record.head for run in load_runs(stored("spots"))]
    assert heads.count("mlp") == 3
    areas = [float(line.split()[0]) for line in lines[1:]]
    assert areas == sorted(areas, reverse=True)
    assert "combinations were tried, 0 left out" in capsys.readouterr().err
    short = train_heads(drawn_set, "squeezenet1_1", heads="knn mlp stack", budget=1e-3)
    assert len(short) == 2, "the first view, which was there, and a stack of what is there"
    assert "left out for want of time" in capsys.readouterr().err
    with pytest.raises(CacheError, match="BUDGET= searches"):
        train_heads(drawn_set, "squeezenet1_1", heads="map", budget=5)


def test_features_larger_than_memory(
    drawn_set: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay on the disk: the heads that can read them there predict the same, the others say why they cannot."""
    (line,) = train_heads(drawn_set, "squeezenet1_1", heads="lightgbm")
    in_memory = load_predictions(Path(line.split()[-1]) / "predictions.csv", ("normal", "spot"))
    (Path(line.split()[-1]) / "run.json").unlink()
    monkeypatch.setattr("models.runs.features.memory", lambda: 1000)
    with pytest.raises(CacheError, match="knn on squeezenet1_1 needs its features in memory, and 64 x 512 features"):
        train_heads(drawn_set, "squeezenet1_1", heads="knn")
    lines = train_heads(drawn_set, "squeezenet1_1", heads="logistic lightgbm")
    on_disk = load_predictions(Path(lines[1].split()[-1]) / "predictions.csv", ("normal", "spot"))
    assert np.array_equal(on_disk.ids, in_memory.ids)
    np.testing.assert_allclose(on_disk.proba, in_memory.proba, atol=1e-12)


def test_runs_of_an_older_form_are_passed_over(drawn_set: str) -> None:
    """A run.json that lacks what is needed today counts as no run: it is trained again, and nothing breaks on it."""
    (line,) = train_heads(drawn_set, "squeezenet1_1", heads="knn")
    path = Path(line.split()[-1]) / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in facts.items() if name != "protocol"}))
    assert load_runs(stored("spots")) == []
    with pytest.raises(CacheError, match="no trained heads"):
        compare(drawn_set)
    train_heads(drawn_set, "squeezenet1_1", heads="knn")
    assert [run.record.protocol for run in load_runs(stored("spots"))] == ["split"]


@pytest.mark.parametrize("file", ["predictions.csv", "head.json", "head.safetensors"])
def test_a_run_with_a_damaged_file_is_trained_again(file: str, drawn_set: str, tmp_path: Path) -> None:
    """Nothing is made of it before, and what is suggested mends it: cut short, gone, or other rows that read well."""
    (line,) = train_heads(drawn_set, "squeezenet1_1", heads="mlp")
    folder = Path(line.split()[-1])
    path, whole = folder / file, (folder / file).read_bytes()
    words = f"{file} is gone, damaged or edited .*; run: make train-heads .*HEADS=mlp"
    for damage in (b"".join(whole.splitlines(keepends=True)[:-1]), whole[: len(whole) // 2], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        for use in (
            partial(bundle, selected(folder), out=tmp_path / "b"),
            *([partial(compare, drawn_set)] if file == "predictions.csv" else []),
        ):
            with pytest.raises(CacheError, match=words):
                use()
        train_heads(drawn_set, "squeezenet1_1", heads="mlp")
        assert path.read_bytes() == whole
    compare(drawn_set)


def test_names_of_all_kinds_come_back(tmp_path: Path) -> None:
    """Predictions are read as they were written, whatever characters the names of images and classes hold."""
    ids = np.array(["a\rb", "c\nd", 'e"f', "g,h", "\u2028", " i "])
    proba = np.random.default_rng(0).dirichlet([1, 1], 6)
    written = Predictions(ids, ids[::-1], np.arange(6) % 2, proba, np.arange(6) - 1)
    save_predictions(tmp_path / "p.csv", written, ("x\ry", "z"))
    read = load_predictions(tmp_path / "p.csv", ("x\ry", "z"))
    assert all(np.array_equal(a, b) for a, b in zip(written, read, strict=True))
