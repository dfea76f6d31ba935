"""Class maps: exact where the head ends in a mean, gradients as torch gives them, and the sheet that shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stored
from PIL import Image
from runs_for_tests import without_digests
from torch import nn
from verbs_for_tests import explain, extract, finetune, train_heads
from verbs_for_tests import pack as cache_pack

from features.backbones import load_spec
from features.backbones.build import load_tail
from features.cache.entry import cache_root
from features.cache.verify import find_entries
from features.errors import BadDataset, CacheError, FirnError, UnknownName
from features.views import map_view
from models.explain.class_maps import asked_maps, grad_cam, hires_cam, linear_class_maps, network_class_maps
from models.finetuning.network import FinetunedNetwork
from models.heads import load_head, make_head
from models.heads.linear import probabilities
from models.runs.outcomes import judged, outcomes
from models.runs.record import Run, load_run
from models.validation.predictions import Predictions
from pipeline.render.contact_sheet import overlaid

ROOT = Path(__file__).parents[1]
NET = "squeezenet1_1"
ODDS = np.array([[-1.0, 1.0]])


def told(lines: list[str]) -> tuple[dict[str, Any], Path]:
    """Return the JSON and the PNG of the only sheet."""
    (line,) = lines
    content, png = (Path(word) for word in line.split()[-2:])
    return json.loads(content.read_text()), png


@pytest.mark.parametrize("name", ["logistic", "sgd", "lda", "ridge"])
@pytest.mark.parametrize("classes", [2, 3])
def test_exact_class_maps_of_linear_heads(name: str, classes: int) -> None:
    """Mean over positions + bias is the head's logit in float64, and the softmax is what it predicts."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % classes
    maps = (rng.random((60, 5, 3, 4)) + 0.3 * y[:, None, None, None] * np.arange(5)[:, None, None]).astype(np.float16)
    pooled = maps.mean(axis=(2, 3), dtype=np.float64)
    head: Any = make_head(name).fit(pooled.astype(np.float32), y)
    found = linear_class_maps(head.coef_, head.intercept_, maps)
    assert found.evidence.shape == (60, classes, 3, 4)
    logits = pooled @ head.coef_.T + head.intercept_
    ours = found.logits()
    np.testing.assert_allclose(ours[:, 1:] - ours[:, :1] if logits.shape[1] == 1 else ours, logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.votes().mean(axis=(2, 3)), ours, atol=1e-9)
    np.testing.assert_allclose(probabilities(ours), head.predict_proba(pooled.astype(np.float32)), atol=1e-5)


def test_evidence_lies_where_the_channel_is() -> None:
    """A channel that is strong at one position gives its evidence there."""
    maps = np.zeros((1, 2, 3, 3))
    maps[0, 1, 2, 0] = 9.0
    found = linear_class_maps(np.array([[0.5, 2.0]]), np.array([-1.0]), maps)
    odds = asked_maps(found.evidence, ODDS)[0]
    assert odds[2, 0] == 18
    assert np.count_nonzero(odds) == 1
    assert found.logits()[0, 1] - found.logits()[0, 0] == 2.0 - 1.0


def test_cached_maps_give_the_logits_of_cached_features(spots: Path) -> None:
    """What is cached in float16 gives the predicted probability within float16's rounding."""
    extract(str(spots), NET, maps="1", precision="float32")
    (line,) = train_heads(str(spots), NET, heads="logistic", precision="float32")
    folder = Path(line.split()[-1])
    (entry,) = find_entries(cache_root(stored("spots")))
    view, head, run = map_view(entry, "features.12"), load_head(folder), load_run(folder)
    found = linear_class_maps(*(head.state()[1][name] for name in ("coef", "intercept")), view.X)
    test = run.predictions.part(test=True)
    at = np.searchsorted(view.ids, test.ids)
    logit = np.log(test.proba[:, 1] / test.proba[:, 0])
    ours = found.logits()[at]
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], logit, atol=5e-3 * max(1, np.abs(logit).max()))


@pytest.fixture
def thawed() -> tuple[FinetunedNetwork, np.ndarray[Any, Any]]:
    """Return a fine-tuned network and some maps at its boundary."""
    spec = load_spec(NET)
    shape = spec.blocks["features.8"]
    maps = np.random.default_rng(0).random((3, *shape)).astype(np.float16)
    return FinetunedNetwork(load_tail(spec, "features.8"), 512, 3, seed=1).eval(), maps


def test_exact_class_maps_of_a_network(thawed: tuple[FinetunedNetwork, Any]) -> None:
    """A fine-tuned network ends in a mean and a linear layer, so its class maps are exact too."""
    network, maps = thawed
    found = network_class_maps(network, maps)
    with torch.inference_mode():
        logits = network(torch.from_numpy(maps).float()).numpy()
    np.testing.assert_allclose(found.logits(), logits, rtol=0, atol=1e-5)
    assert found.evidence.shape[:2] == (3, 3)
    assert np.ptp(found.evidence[0, 0]) > 0


def test_grad_cam_against_torch(thawed: tuple[FinetunedNetwork, Any]) -> None:
    """Backward on each image's own logit, weights and sums by hand."""
    network, maps = thawed
    called = [2, 0, 1]
    found, fine = (way(network, maps, np.eye(3)[called]) for way in (grad_cam, hires_cam))
    for i, k in enumerate(called):
        one = torch.from_numpy(maps[i : i + 1]).float()
        one.requires_grad_(True)
        network(one)[0, k].backward()
        assert one.grad is not None
        weights = one.grad[0].flatten(1).mean(1).numpy()
        by_hand = np.maximum(np.tensordot(weights, maps[i].astype(np.float64), axes=1), 0)
        np.testing.assert_allclose(found[i], by_hand, rtol=1e-3, atol=1e-6 * by_hand.max())
        each = (one.grad * one).detach()[0].sum(0).numpy() * maps[i][0].size
        np.testing.assert_allclose(fine[i], each, rtol=1e-3, atol=1e-4 * np.abs(each).max())
    assert (found >= 0).all()
    assert (fine < 0).any()


def test_without_blocks_in_between_all_ways_are_one() -> None:
    """Where the tail does nothing, Grad-CAM is the positive part of the class map by a constant, HiResCAM all of it."""
    network = FinetunedNetwork(nn.Identity(), 6, 2, seed=0).eval()
    maps = np.random.default_rng(1).normal(size=(4, 6, 5, 5)).astype(np.float32)
    asked = np.repeat(ODDS, 4, axis=0)
    exact = asked_maps(network_class_maps(network, maps).evidence, asked)
    np.testing.assert_allclose(hires_cam(network, maps, asked), exact, atol=1e-5)
    np.testing.assert_allclose(grad_cam(network, maps, asked) * 25, np.maximum(exact, 0), atol=1e-5)


def made(y: list[int], proba: list[list[float]], folds: list[int], classes: str) -> Run:
    """Return a run of some predictions."""
    ids = np.array([f"p{i:02d}" for i in range(len(y))])
    part = Predictions(ids, ids, np.array(y), np.array(proba), np.array(folds))
    return Run(Path(), {"classes": classes.split()}, part)


def test_outcomes_of_two_classes() -> None:
    """The threshold comes from the images that were held out, the images are the test images, surest first."""
    held = [0.1, 0.2, 0.7, 0.9]
    tested = [0.3, 0.46, 0.6, 0.95, 0.44, 0.05]
    p = [[1 - x, x] for x in held + tested]
    run = made([0, 0, 1, 1, 1, 1, 0, 1, 0, 1], p, [0, 1, 0, 1, *[-1] * 6], "no yes")
    found = judged(run)
    assert not found.seen
    assert found.threshold == pytest.approx(0.45)
    lines = {line.name: [str(found.ids[i]) for i in line.at] for line in outcomes(found, ("no", "yes"), 2)}
    assert lines == {
        "true positives": ["p07", "p05"],
        "false positives": ["p06"],
        "false negatives": ["p09", "p04"],
        "true negatives": ["p08"],
    }


def test_outcomes_of_more_classes_out_of_fold() -> None:
    """Without test images each counts once, with the mean of its repeats; right ones before wrong ones."""
    y, first, again = [0, 1, 2, 1], np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 0, 2, 0]]
    one = made(y, (0.9 * first + 0.03).tolist(), [0, 0, 1, 1], "a b c")
    two = made(y, (0.1 * again + 0.3).tolist(), [2, 2, 3, 3], "a b c")
    both = (np.concatenate(columns) for columns in zip(one.predictions, two.predictions, strict=True))
    found = judged(Run(Path(), one.record, Predictions(*both)))
    assert found.seen
    assert found.threshold is None
    assert found.called.tolist() == [0, 1, 2, 0]
    np.testing.assert_allclose(found.proba[1], [0.215, 0.615, 0.165])
    assert [line.at for line in outcomes(found, ("a", "b", "c"), 4)] == [[0, 3], [1], [2]]


def test_overlay() -> None:
    """Zero leaves the image in grey, for is redder than blue, against bluer than red."""
    image = np.full((20, 20, 3), 120, np.uint8)
    np.testing.assert_array_equal(overlaid(image, np.zeros((2, 2)), 1.0), image)
    both = overlaid(image, np.array([[2.0, -2.0]]), 1.0)
    left, right = both[10, 0].astype(int), both[10, -1].astype(int)
    assert left[0] > left[2] + 50
    assert right[2] > right[0] + 50


def test_the_sheet(spots: Path) -> None:
    """The verb writes an image and what is in it; its lines are the four outcomes of the test images."""
    extract(str(spots), NET, maps="1", precision="float32")
    trained = train_heads(str(spots), NET, heads="logistic map knn", precision="float32")
    command = [sys.executable, "-W", "error", "-m", "pipeline", "explain", "--dataset", str(spots), "--per-row", "3"]
    done = subprocess.run([*command, "--heads", "logistic"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content, png = told(done.stdout.splitlines())
    run = load_run(Path(trained[0].split()[-1]))
    found = judged(run)
    expected = {line.name: [str(found.ids[i]) for i in line.at] for line in outcomes(found, run.record.classes, 3)}
    shown: dict[str, list[str]] = {name: [] for name in expected}
    for image in content["images"]:
        shown[image["line"]].append(image["id"])
        odds = np.log(image["proba"]["spot"] / image["proba"]["normal"])
        assert image["mean"] == pytest.approx(odds, abs=0.02 * max(1, abs(odds)))
        assert image["highest"][0]["value"] >= image["mean"]
        assert 0 < image["highest"][0]["x"] < content["map"]["side"]
    assert shown == expected
    assert len(expected) == 4
    assert {p["id"].split("/")[0] for p in content["images"]} == {"test"}
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert image.width > 700
    assert not content["seen_in_training"]
    lines = explain(str(spots), heads="map logistic", per_row=3)
    assert ["map on" in lines[0], "logistic on" in lines[1]] == [True, True]
    (best,) = explain(str(spots), per_row=3)
    assert best in explain(str(spots), heads="map logistic", per_row=3)


def test_the_sheet_of_a_thawed_network(spots: Path) -> None:
    """Class map and both gradient maps, from the boundary; without blocks in the cache, from images."""
    quick: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "float32"}
    finetune(str(spots), NET, **quick)
    content, png = told(explain(str(spots), heads="finetuned"))
    assert any("Grad-CAM at features.8" in note for note in content["notes"])
    with Image.open(png) as image:
        boundary = image.height
    for image in content["images"]:
        odds = np.log(image["proba"]["spot"] / image["proba"]["normal"])
        assert image["mean"] == pytest.approx(odds, abs=1e-3 * max(1, abs(odds)))
    for path in Path(os.environ["FIRN_ARTIFACTS"]).rglob("run.json"):
        path.unlink()
    finetune(str(spots), NET, blocks="all", **quick)
    content, png = told(explain(str(spots), heads="finetuned"))
    with Image.open(png) as image:
        assert image.height < boundary
    assert not any("Grad-CAM" in note for note in content["notes"])


def test_cross_validation_says_that_the_images_were_seen(spots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No test images: outcomes are out of fold, and the sheet says what the maps are of."""
    extract(str(spots), NET, maps="1", precision="float32")
    train_heads(str(spots), NET, heads="lda", precision="float32", protocol="cv")
    content, _ = told(explain(str(spots), protocol="cv"))
    assert content["seen_in_training"]
    assert "HAS SEEN THESE" in content["notes"][0]
    assert "HAS SEEN THESE" in capsys.readouterr().err


def test_what_cannot_be_explained(spots: Path, tmp_path: Path) -> None:
    """One clear line with the command to type: no run, no class maps, no cached maps, no images."""
    with pytest.raises(CacheError, match="run: make extract train-heads DATASET="):
        explain(str(spots))
    with pytest.raises(CacheError, match="run: make finetune DATASET="):
        explain(str(spots), heads="finetuned")
    with pytest.raises(UnknownName, match="did you mean logistic"):
        explain(str(spots), heads="logistics")
    with pytest.raises(FirnError, match=r"lightgbm has no class maps.*logistic sgd"):
        explain(str(spots), heads="lightgbm")
    extract(str(spots), NET, precision="float32")
    train_heads(str(spots), NET, heads="lda", precision="float32")
    with pytest.raises(CacheError, match=r"no maps of features\.12 .*make extract DATASET=\S+ .*MAPS=features\.12"):
        explain(str(spots))
    pack = tmp_path / "spots.h5"
    cache_pack(str(spots), NET, out=str(pack), precision="float32")
    with pytest.raises(BadDataset, match="without the images"):
        explain(str(pack))


def test_what_does_not_belong_together(spots: Path) -> None:
    """A changed image, and a head that is not the one behind the predictions, are not shown."""
    extract(str(spots), NET, maps="1", precision="float32")
    (line,) = train_heads(str(spots), NET, heads="lda", precision="float32")
    image = spots / "test" / "spot" / "test000.png"
    before = image.read_bytes()
    Image.new("L", (48, 48)).save(image)
    with pytest.raises(CacheError, match=r"as they are now; run: make extract train-heads DATASET="):
        explain(str(spots), per_row=8)
    image.write_bytes(before)
    explain(str(spots), per_row=8)
    head = Path(line.split()[-1]) / "head.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file({name: -array for name, array in load_file(head).items()}, head)
    with pytest.raises(CacheError, match=r"head.safetensors is gone, damaged or edited since the run was saved"):
        explain(str(spots), per_row=8)
    without_digests(head.parent)
    with pytest.raises(CacheError, match=r"do not belong together.*make train-heads"):
        explain(str(spots), per_row=8)
