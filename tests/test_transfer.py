"""make transfer: the detour against the direct way, on the same images of the target; wrong input is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw, stored
from runs_for_tests import draw_predictions, make_run
from scipy.stats import ttest_1samp
from verbs_for_tests import train_heads, transfer

from features.backbones import load_spec
from features.cache.entry import cache_root
from features.cache.verify import find_entries
from features.datasets import load_dataset
from features.errors import BadDataset, CacheError, FirnError, UnknownName
from features.views import load_manifest, pooled_view
from models.domain_shift import linear_cka
from models.metrics import compare_pairs, delong_test, score
from models.runs.record import load_run
from models.runs.results import UNDECIDED, DetourRow, TransferResult, Verdict
from models.runs.scores import number, shown
from models.runs.seeds import difference_over_seeds
from pipeline.render.transfer_report import detour_lines
from pipeline.transfer import steady

ROOT = Path(__file__).parents[1]
NET = "squeezenet1_1"
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "float32"}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bootstrap be quick."""
    monkeypatch.setattr("pipeline.transfer.DRAWS", 100)


@pytest.fixture
def domains(tmp_path: Path) -> list[str]:
    """Return three sets of drawn images."""
    return [str(draw(tmp_path / name, seed=i)) for i, name in enumerate(("first", "second", "third"), start=7)]


def told(lines: list[str]) -> dict[str, Any]:
    """Return the JSON of a report."""
    content: dict[str, Any] = json.loads(Path(lines[-1]).read_text())
    return content


def test_the_detour_is_compared_on_the_same_images(domains: list[str]) -> None:
    """Over two domains: numbers are those of the runs, differences paired and corrected; a second time does nothing."""
    first, second, third = domains
    lines = transfer(first, third, NET, shared=second, heads="lda knn", protocol="split", **QUICK)
    found = told(lines)
    names = [load_dataset(folder).name for folder in domains]
    detour = f"{NET}@{names[0]}@{names[1]}"
    assert (found["passed"], found["target"], found["detour"]) == (names[:2], names[2], detour)
    assert [step["backbone"] for step in found["steps"]] == [f"{NET}@{names[0]}", detour]
    assert load_spec(detour).weights != load_spec(f"{NET}@{names[0]}").weights != load_spec(NET).weights
    assert [row["head"] for row in found["rows"]] == ["lda", "knn"]
    assert (found["images"], found["groups"]) == (8, 8)  # the test images, on which the scores are
    pairs = []
    for row in found["rows"]:
        ways = [shown(load_run(Path(row[way]["folder"]))) for way in ("direct", "detour")]
        assert np.array_equal(ways[0].ids, ways[1].ids)
        for way, part in zip(("direct", "detour"), ways, strict=True):
            area = score(part.y, part.proba, part.groups, n_bootstrap=0)["roc_auc"].value
            assert row[way]["roc_auc"]["value"] == pytest.approx(area)
        test = delong_test(ways[0].y, ways[1].proba[:, 1], ways[0].proba[:, 1], ways[0].groups)
        assert row["difference"]["value"] == pytest.approx(test.difference.value)
        pairs.append((ways[0].proba, ways[1].proba))
    tests = compare_pairs(ways[0].y, pairs, ways[0].groups)
    assert [row["p_adjusted"] for row in found["rows"]] == [number(test.p_adjusted) for test in tests]
    assert [row["difference"]["low"] for row in found["rows"]] == [number(test.difference.low) for test in tests]
    assert not any(row["over_seeds"] for row in found["rows"])
    assert [row["domain"] for row in found["distances"]] == names[:2]
    assert " → ".join(["ImageNet", *names]) in lines[0]
    assert Path(lines[-2]).read_text().startswith(lines[0])
    stamps = [(Path(row["detour"]["folder"]) / "run.json").stat().st_mtime_ns for row in found["rows"]]
    assert transfer(first, third, NET, shared=second, heads="lda knn", protocol="split", **QUICK) == lines
    assert stamps == [(Path(row["detour"]["folder"]) / "run.json").stat().st_mtime_ns for row in found["rows"]]


def test_only_thawed_blocks_have_changed(domains: list[str]) -> None:
    """The detour's backbone is the direct one up to the boundary; its CKA is that of the two last blocks."""
    first, _, third = domains
    found = told(transfer(first, third, NET, heads="lda", **QUICK))
    assert found["protocol"] == "cv"
    direct, detour = (
        next(entry for entry in find_entries(cache_root(stored("third"))) if entry.key.backbone == name)
        for name in (NET, f"{NET}@{stored('first')}")
    )
    blocks = list(load_spec(NET).blocks)
    for block in blocks[:-1]:
        assert np.array_equal(pooled_view(direct, [block]).X, pooled_view(detour, [block]).X)
    before, after = (pooled_view(entry, blocks[-1:]).X for entry in (direct, detour))
    assert not np.array_equal(before, after)
    assert found["distances"][0]["cka"] == pytest.approx(linear_cka(before, after), abs=1e-6)
    assert 0.5 < found["distances"][0]["cka"] < 1


def test_the_target_can_be_thawed_too(domains: list[str]) -> None:
    """From the command line: networks fine-tuned on the target stand in the same table as its heads."""
    first, _, third = domains
    flags = ["--source", first, "--target", third, "--backbone", NET, "--heads", "lda", "--thaw", "--epochs", "1"]
    command = [sys.executable, "-W", "error", "-m", "pipeline", "transfer", *flags, "--protocol", "split"]
    done = subprocess.run([*command, "--precision", "float32"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = told(done.stdout.splitlines())
    assert [row["head"] for row in found["rows"]] == ["lda", "finetuned"]
    runs = [load_run(Path(found["rows"][1][way]["folder"])) for way in ("direct", "detour")]
    assert [run.record.backbone for run in runs] == [NET, f"{NET}@{stored('first')}"]
    assert np.array_equal(runs[0].predictions.fold, runs[1].predictions.fold)


def test_a_image_of_the_target_among_those_thawed_on_is_refused(domains: list[str]) -> None:
    """Even one, and under another name: the network has seen its label."""
    first, _, third = domains
    shutil.copy(Path(first) / "train" / "spot" / "train003.png", Path(third) / "test" / "spot" / "copied.png")
    with pytest.raises(BadDataset, match=r"1 images of third-\w+ are in first-\w+ too"):
        transfer(first, third, NET, heads="lda", **QUICK)


def test_wrong_input(domains: list[str]) -> None:
    """Each is said before anything is extracted."""
    first, second, third = domains
    with pytest.raises(FirnError, match="different data sets as SOURCE, SHARED and TARGET"):
        transfer(first, first, NET, **QUICK)
    with pytest.raises(FirnError, match=r'map needs more than pooled features.*HEADS="lda"'):
        transfer(first, third, NET, heads="lda map", **QUICK)
    with pytest.raises(UnknownName, match="recipe"):
        transfer(first, third, NET, recipe="adam", **QUICK)
    with pytest.raises(UnknownName, match="protocol"):
        transfer(first, third, NET, protocol="loo", **QUICK)
    with pytest.raises(FirnError, match=r"unknown|no data"):
        transfer(str(second) + "x", third, NET, **QUICK)
    assert not find_entries(cache_root(load_dataset(first).name))


def test_a_thawed_backbone_has_no_place_on_its_own_source(domains: list[str]) -> None:
    """Its heads there would be scored on images whose labels it knows."""
    first, _, third = domains
    transfer(first, third, NET, heads="lda", **QUICK)
    (entry,) = (e for e in find_entries(cache_root(stored("third"))) if e.key.backbone == f"{NET}@{stored('first')}")
    assert len(load_manifest(entry).ids) == 32
    from verbs_for_tests import extract

    extract(first, f"{NET}@{stored('first')}", precision="float32")
    with pytest.raises(CacheError, match="and has seen their labels"):
        train_heads(first, f"{NET}@{stored('first')}", heads="lda", precision="float32")


def row(head: str, difference: float, verdict: str) -> DetourRow:
    """Return a line of results."""
    score_ = {"value": 0.8, "low": 0.7, "high": 0.9}
    way = {"folder": "x", "roc_auc": score_, "balanced_accuracy": score_}
    interval = {"value": difference, "low": difference - 0.1, "high": difference + 0.1}
    return DetourRow(head, "layer4 avg", way, way, Verdict(interval, 0.02, 0.04, verdict != UNDECIDED, verdict))


def test_a_difference_must_exceed_the_spread_over_seeds_too() -> None:
    """Its mean over the seeds both runs share, with Student's interval; what the images leave open stays so."""
    plain, narrow, wide = (
        make_run(draw_predictions(2, strength=1), spread={"seeds": [0, 1, 2], "test": {"values": values}}).record
        for values in ([0.8, 0.81, 0.79], [0.84, 0.85, 0.83], [0.84, 0.95, 0.73])
    )
    over = difference_over_seeds(plain, narrow)
    assert over is not None
    assert (over["seeds"], over["value"], over["low"]) == (3, pytest.approx(0.04), pytest.approx(0.04))
    gaps = difference_over_seeds(plain, wide)
    assert gaps is not None
    expected = ttest_1samp([0.04, 0.14, -0.06], 0).confidence_interval()
    assert (gaps["low"], gaps["high"]) == pytest.approx(tuple(expected))
    helped = row("lda", 0.04, "higher").test
    assert [steady(helped, told).verdict for told in (over, gaps, None)] == ["higher", "within seeds", "higher"]
    assert steady(row("lda", -0.04, "lower").test, over).verdict == "within seeds", "the seeds say the contrary"
    assert steady(row("lda", 0.04, UNDECIDED).test, over).verdict == UNDECIDED
    assert difference_over_seeds(plain, replace(narrow, spread=None)) is None


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        ("higher", "helped"),
        ("lower", "hurt"),
        (UNDECIDED, "made no difference that these images"),
        ("within seeds", "made a difference that other seeds may turn"),
    ],
)
def test_the_verdict_is_plainly_said(verdict: str, word: str) -> None:
    """The first head makes the sentence, the others are counted; a file's name does not steer a terminal."""
    results = TransferResult(
        passed=["one"],
        target="two\x1b[31m",
        backbone=NET,
        detour=f"{NET}@one",
        labels="classes",
        protocol="cv",
        folds=4,
        repeats=3,
        seed=0,
        n_bootstrap=100,
        level=0.95,
        images=90,
        groups=30,
        steps=[],
        distances=[],
        rows=[row("lda", 0.3, verdict), row("knn", -0.3, "lower")],
    )
    lines = detour_lines(results)
    assert word in lines[2]
    assert "out of fold, 4 grouped folds, drawn 3 times" in lines[4]
    assert f"hurt {1 + (verdict == 'lower')}" in lines[2]
    assert not any("\x1b" in line for line in lines)
