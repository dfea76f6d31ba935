"""Whole networks as runs: the mean of the folds' networks, one, one more on all images; in bundle and export."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw, stored
from torch import nn
from verbs_for_tests import bundle, compare, explain, export, finetune, selected, train_heads, transfer

from features import progress
from features.backbones import load_spec
from features.backbones.build import load_backbone
from features.datasets import load_dataset
from features.errors import BadBundle, BadDataset, CacheError, FirnError
from features.extraction.prefetch import ImageStream
from features.options import DatasetOptions
from models.finetuning.checkpoints import load_network
from models.finetuning.cross_validation import CLASSIFIER, network_files
from models.finetuning.settings import FinetuneOptions
from models.heads import HEADS
from models.heads.linear import probabilities
from models.predictor.loading import load
from models.predictor.manifest import load_contents
from models.runs.options import RunOptions
from models.runs.record import Run, finetune_command, load_record, load_run
from models.runs.stack import base_runs, train_stack

NET = "squeezenet1_1"
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "float32"}


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    """Return a folder of 14 drawn images, 4 + 3 of each of two classes: there are four folds."""
    return draw(tmp_path / "spots", per_class=4, test=3)


def folder_of(lines: list[str]) -> Path:
    """Return the folder of the only run."""
    (line,) = lines
    return Path(line.split("; backbone")[0].split(" ")[-1])


def logits_of(path: Path, images: torch.Tensor) -> np.ndarray:
    """Return the logits of a run's network by torch alone, the mean with those of mirror images."""
    tensors, _ = load_network(path)
    classifier = {name: tensors.pop(f"{CLASSIFIER}.{name}") for name in ("weight", "bias")}
    whole = load_backbone(load_spec(NET))
    missing, unexpected = whole.load_state_dict(tensors, strict=False)
    assert not missing
    assert not unexpected
    with torch.inference_mode():
        maps = [list(whole(some).values())[-1].mean((2, 3)) for some in (images, images.flip(3))]
    each = [nn.functional.linear(some, classifier["weight"], classifier["bias"]) for some in maps]
    return ((each[0] + each[1]) / 2).double().numpy()


def on_test_images(run: Run, data: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Return the test images as the network sees them, and the probabilities of the run."""
    part = run.predictions.part(test=True)
    stream = ImageStream(load_dataset(str(data)).source, part.ids.tolist(), load_spec(NET), "squash")
    return torch.from_numpy(stream.read(np.arange(len(part.ids)))), part.proba


def test_the_mean_of_networks_in_run_bundle_and_export(spots: Path, tmp_path: Path) -> None:
    """Test images, a bundle, its ONNX graph and class maps are those of the mean of four networks' logits."""
    folder = folder_of(finetune(str(spots), NET, blocks="all", **QUICK))
    run, files = load_run(folder), network_files(folder)
    assert run.name == f"finetuned on {NET} all blocks, strong, epochs 1, batch 8"
    assert [path.name for path in files] == ["network.safetensors", *(f"network-{i}.safetensors" for i in range(2, 5))]
    images, proba = on_test_images(run, spots)
    members = [logits_of(path, images) for path in files]
    assert np.abs(members[0] - members[1]).max() > 1e-3  # they are different networks
    np.testing.assert_allclose(proba, probabilities(np.mean(members, axis=0)), atol=1e-5)
    out = tmp_path / "mean.zip"
    bundle(selected(folder), out=out)
    names = run.predictions.part(test=True).ids.tolist()
    source = load_dataset(str(spots)).source
    found = load(out, device="cpu", explained=True)([source.read(name) for name in names])
    np.testing.assert_allclose(found.proba, proba, atol=1e-5)
    votes = found.votes
    assert votes is not None
    np.testing.assert_allclose(probabilities(votes.mean((2, 3))), found.proba, atol=1e-5)
    assert "agrees with torch" in " ".join(export(selected(out), "onnx", out=str(tmp_path / "mean.onnx")))
    assert explain(str(spots), heads="finetuned", per_row=2)
    assert "NETWORKS=mean" in finetune_command(run.record)


def test_a_bundle_of_maps_and_a_damaged_one(spots: Path, tmp_path: Path) -> None:
    """Of four tails on cached maps the trunk is computed once; a number that is none is refused."""
    folder = folder_of(finetune(str(spots), NET, **QUICK))
    out = tmp_path / "mean"
    bundle(selected(folder), out=out)
    contents = load_contents(out)
    assert len(contents.networks) == 1
    assert not contents.parts[0].mirrored
    part = load_run(folder).predictions.part(test=True)
    source = load_dataset(str(spots)).source
    found = load(out, device="cpu")([source.read(name) for name in part.ids.tolist()])
    np.testing.assert_allclose(found.proba, part.proba, atol=2e-3)
    written = json.loads((out / "bundle.json").read_text())
    written["parts"][0]["mirrored"] = "yes"
    (out / "bundle.json").write_text(json.dumps(written))
    with pytest.raises(BadBundle, match="mirrored"):
        load(out, device="cpu")


def test_one_network_is_compared_and_grows_into_the_mean(
    spots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fold is predicted, and the test images by its network; a stack leaves it out; `mean` goes on from it."""
    one = folder_of(finetune(str(spots), NET, blocks="all", networks="one", **QUICK))
    run = load_run(one)
    assert run.record.folds == len(run.record.history) == 1
    held = run.predictions.part(test=False)
    assert 0 < len(held.ids) < 8
    assert set(held.fold.tolist()) == {0}
    images, proba = on_test_images(run, spots)
    (file,) = network_files(one)
    np.testing.assert_allclose(proba, probabilities(logits_of(file, images)), atol=1e-5)
    train_heads(str(spots), NET, heads="logistic lda", precision="float32")
    page = Path(compare(str(spots))).read_text()
    assert 'data-figure="training-log-loss"' in page
    bases = base_runs(stored("spots"), DatasetOptions("spots"), RunOptions(), [NET], ("logistic", "lda"))
    assert len(bases) == 2
    capsys.readouterr()
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(progress, "_lines", lambda *_: lambda done, total: steps.append((done, total)))
    two = load_run(folder_of(finetune(str(spots), NET, blocks="all", networks="2", **QUICK)))
    assert "1 x 1 epochs" in capsys.readouterr().err
    assert steps[-1] == (1, 1), "the bar is of what is still to be done: a batch of each training"
    assert set(two.predictions.fold.tolist()) == {-1, 0, 1}
    logits = [logits_of(file, images) for file in network_files(two.folder)]
    np.testing.assert_allclose(on_test_images(two, spots)[1], probabilities(np.mean(logits, axis=0)), atol=1e-5)
    assert (len(logits), two.record.networks, two.record.partial) == (2, 2, True)
    compare(str(spots))
    assert len(base_runs(stored("spots"), DatasetOptions("spots"), RunOptions(), [NET], tuple(HEADS))) == 2
    capsys.readouterr()
    mean = folder_of(finetune(str(spots), NET, blocks="all", **QUICK))
    said = capsys.readouterr().err
    assert "2 x 1 epochs" in said
    assert steps[-2:] == [(1, 2), (2, 2)]
    assert "fold 1 of 4" not in said
    again = load_run(mean).predictions
    first = again.fold == 0
    assert np.array_equal(again.proba[first], held.proba)
    assert mean != one
    every = load_run(folder_of(finetune(str(spots), NET, blocks="all", networks="all", **QUICK)))
    assert len(every.record.history) == 5
    np.testing.assert_array_equal(every.predictions.part(test=False).proba, again.part(test=False).proba)
    assert not np.allclose(every.predictions.part(test=True).proba, again.part(test=True).proba)
    assert len(network_files(every.folder)) == 1


def test_seeds_and_their_spread(spots: Path) -> None:
    """The run is that of the first seed; others train in the same folds, and leave no networks in it."""
    options: dict[str, Any] = {"networks": "one", **QUICK}
    folder = folder_of(finetune(str(spots), NET, **options))
    first = load_run(folder)
    before = {path: path.read_bytes() for path in network_files(folder)}
    assert folder_of(finetune(str(spots), NET, seeds=2, **options)) == folder
    run = load_run(folder)
    assert run.record.spread is not None
    assert run.record.spread["of"] == "network"
    assert run.record.spread["seeds"] == [0, 1]
    assert len(run.record.spread["test"]["values"]) == 2
    np.testing.assert_array_equal(run.predictions.proba, first.predictions.proba)
    assert {path: path.read_bytes() for path in network_files(folder)} == before
    fits = [path for name in ("fits", "fits-seed-1") for path in folder.parent.glob(f"*/{name}/fold-0.safetensors")]
    assert len(fits) == 2
    assert fits[0].read_bytes() != fits[1].read_bytes()
    assert "SEEDS=2" in finetune_command(run.record)
    stamps = [path.stat().st_mtime_ns for path in fits]
    finetune(str(spots), NET, seeds=2, **options)
    assert [path.stat().st_mtime_ns for path in fits] == stamps


def test_one_network_needs_test_images(spots: Path) -> None:
    """For on what else would it be compared."""
    with pytest.raises(BadDataset, match="NETWORKS=mean"):
        finetune(str(spots), NET, blocks="all", networks="one", protocol="cv", **QUICK)
    with pytest.raises(BadDataset, match="NETWORKS=4 of 4 folds is NETWORKS=mean; take that, or 3 at most"):
        finetune(str(spots), NET, blocks="all", networks="4", **QUICK)


def test_how_many_networks() -> None:
    """By a name or a number; 1 is one."""
    assert [FinetuneOptions(networks=asked).networks for asked in ("1", "02", "mean")] == ["one", "2", "mean"]
    for wrong in ("0", "two", "-1", "1.5"):
        with pytest.raises(FirnError, match=f"networks.*{wrong}"):
            FinetuneOptions(networks=wrong)


def test_a_stack_listens_to_whole_networks(spots: Path, tmp_path: Path) -> None:
    """Like to any other run, and its bundle gives what it predicted."""
    finetune(str(spots), NET, blocks="all", **QUICK)
    train_heads(str(spots), NET, heads="lda", precision="float32")
    name, data = stored("spots"), DatasetOptions(str(spots))
    folder = train_stack(name, data, RunOptions(), [NET], tuple(HEADS))
    stack = load_run(folder)
    assert sum("all-blocks" in base for base in stack.record.bases) == 1
    bundle(selected(folder), out=tmp_path / "stack")
    part = stack.predictions.part(test=True)
    source = load_dataset(str(spots)).source
    found = load(tmp_path / "stack", device="cpu")([source.read(image) for image in part.ids.tolist()])
    np.testing.assert_allclose(found.proba, part.proba, atol=1e-4)


def test_a_detour_with_the_whole_network(spots: Path, tmp_path: Path) -> None:
    """Source, then shared domain, each fine-tuned whole; the target's heads are compared as ever."""
    source, shared = (draw(tmp_path / name, per_class=4, test=2, seed=len(name)) for name in ("source", "far"))
    options: dict[str, Any] = {"blocks": "all", "heads": "lda", "protocol": "split", **QUICK}
    lines = transfer(str(source), str(spots), NET, shared=str(shared), **options)
    result = json.loads(Path(lines[-1]).read_text())
    assert [step["blocks"] for step in result["steps"]] == ["all blocks, strong, epochs 1, batch 8, networks all"] * 2


def test_networks_that_are_gone_or_damaged_come_back(spots: Path, tmp_path: Path) -> None:
    """The finished trainings are read again, a missing network is trained anew, and never is there one less."""
    folder = folder_of(finetune(str(spots), NET, **QUICK))
    first, files = load_run(folder), network_files(folder)
    kept = [path.read_bytes() for path in files]
    files[1].unlink()
    for use in (
        partial(bundle, selected(folder), out=tmp_path / "x.zip"),
        partial(explain, str(spots), heads="finetuned"),
    ):
        with pytest.raises(FirnError, match=r"network-2\.safetensors.* run: make finetune .*NETWORKS=mean"):
            use()
    assert finetune(str(spots), NET, **QUICK)
    assert [path.read_bytes() for path in network_files(folder)] == kept
    files[2].write_bytes(kept[2][:1000])  # the trained network has the same bytes: it is a link
    assert finetune(str(spots), NET, **QUICK)
    assert [path.read_bytes()[-1000:] for path in network_files(folder)] == [each[-1000:] for each in kept]
    np.testing.assert_array_equal(load_run(folder).predictions.proba, first.predictions.proba)
    (folder / "predictions.csv").write_text("id,group\n")
    with pytest.raises(CacheError, match=r"damaged .*; run: make finetune .*NETWORKS=mean"):
        load_run(folder)
    assert finetune(str(spots), NET, **QUICK)
    np.testing.assert_array_equal(load_run(folder).predictions.proba, first.predictions.proba)


def test_a_run_that_is_replaced_is_none_until_it_is_whole(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its networks and its record, another seed's networks are of no record of the first."""
    folder = folder_of(finetune(str(spots), NET, networks="one", **QUICK))
    first = network_files(folder)[0].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("models.runs.finetune.save_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(str(spots), NET, networks="one", seed=1, **QUICK)
    assert network_files(folder)[0].read_bytes() != first
    assert load_record(folder) is None
    finetune(str(spots), NET, networks="one", seed=1, **QUICK)
    assert load_run(folder).record.seed == 1


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt
