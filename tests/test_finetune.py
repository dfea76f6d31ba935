"""make finetune: a run beside those of the heads; killed at any moment it goes on; wrong input is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw, stored
from verbs_for_tests import compare, extract, finetune, train_heads

from features.cache.entry import cache_root
from features.cache.verify import find_entries
from features.datasets import load_dataset
from features.errors import BadDataset, BadWeights, CacheError, FirnError
from features.views import pooled_view
from models.finetuning.checkpoints import load_network
from models.folds import held_out
from models.runs.record import load_run, load_runs
from models.runs.results import UNDECIDED
from models.validation.cross_validation import PROTOCOLS, folds_of

ROOT = Path(__file__).parents[1]
NET = "squeezenet1_1"
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "float32"}


def folder_of(lines: list[str]) -> Path:
    """Return the folder of the only run."""
    (line,) = lines
    return Path(line.split("; backbone")[0].split(" ")[-1])


def test_a_training_that_does_not_fit_a_gpu(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is part of the recipe and is not made smaller unasked: the line says how to ask for it."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("models.finetuning.cross_validation.trained_per_second", full)
    with pytest.raises(FirnError, match=r"BATCH_SIZE=6 does not fit .*; run again with BATCH_SIZE=3 or DEVICE=cpu$"):
        finetune(str(workshop / "spots"), NET, **QUICK | {"batch_size": 6})


def test_heads_and_thawed_networks_in_one_comparison(spots: Path) -> None:
    """One command extracts, trains and predicts; comparison, stack and page take the run like any other."""
    from models.heads import HEADS

    folder = folder_of(finetune(str(spots), NET, **QUICK))
    run = load_run(folder)
    assert run.name == f"finetuned on {NET} features.12, epochs 2, batch 8"
    train_heads(str(spots), NET, heads="logistic lda", precision="float32")
    head = next(r for r in load_runs(stored("spots")) if r.record.head == "lda")
    for column in ("ids", "y", "groups", "fold"):
        assert np.array_equal(getattr(run.predictions, column), getattr(head.predictions, column))
    assert [len(history) for history in run.record.history] == [2] * 5
    page = Path(compare(str(spots)))
    results = json.loads((page.parent / "results.json").read_text())
    row = next(row for row in results["runs"] if row["head"] == "finetuned")
    assert row["images_per_second"] > 0
    assert row["against_chosen"] is None or row["against_chosen"]["verdict"] in (UNDECIDED, "lower", "higher")
    (command,) = (c for c in results["commands"] if "finetune" in c)
    assert f"BACKBONE={NET} BLOCKS=1" in command
    assert "EPOCHS=2" in command
    assert 'data-figure="training-auc"' in page.read_text()
    every = tuple(name for name, row in HEADS.items() if row.input != "runs")
    from features.options import DatasetOptions
    from models.runs.options import RunOptions
    from models.runs.stack import base_runs

    bases = partial(base_runs, stored("spots"), DatasetOptions("spots"), RunOptions(), [NET])
    assert {r.record.head for r in bases(every)} == {"finetuned", "logistic", "lda"}
    assert "finetuned" not in {r.record.head for r in bases(("lda",))}


def test_a_second_command_does_nothing_and_other_settings_are_another_run(spots: Path) -> None:
    """The same run is not trained again; a rate of one's own makes a run beside it."""
    folder = folder_of(finetune(str(spots), NET, **QUICK))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert folder_of(finetune(str(spots), NET, **QUICK)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.rglob("*.checkpoint"))
    other = folder_of(finetune(str(spots), NET, rate=1e-3, **QUICK))
    assert other != folder
    assert len(load_runs(stored("spots"))) == 2


def test_no_fold_has_a_part_in_its_own_predictions(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of a fold are exchanged behind the training's back: what is predicted for the fold stays bit for bit."""
    from models.finetuning import cross_validation as module

    folder = folder_of(finetune(str(spots), NET, **QUICK))
    expected = load_run(folder).predictions
    extracted = next(e for e in find_entries(cache_root(stored("spots"))) if e.key.blocks[-1] == "features.12")
    view = pooled_view(extracted, ["features.12"])
    learn = np.flatnonzero(view.splits != "test")
    (folds,) = folds_of(view.y[learn], view.groups[learn], PROTOCOLS["split"])
    from models.runs import finetune as runs

    original = module.keep_networks
    run: dict[str, Any] = {}

    def spy(crossfit: Any, names: Any) -> Any:
        swapped = view.y.copy()
        swapped[learn[folds == 2]] = 1 - swapped[learn[folds == 2]]
        changed = replace(crossfit, view=crossfit.view._replace(y=swapped), identity="x")
        fit = module._fit(changed, "again", learn[folds != 2], learn[folds == 2], draw=3, total=5)
        run["proba"] = fit.proba
        return original(crossfit, names)

    monkeypatch.setattr(runs, "keep_networks", spy)
    (folder / "run.json").unlink()  # the fits are all there and are not done again
    finetune(str(spots), NET, **QUICK)
    held = expected.part(test=False)
    np.testing.assert_array_equal(run["proba"], held.proba[held.fold == 2])


def test_early_stopping_looks_at_other_groups(spots: Path) -> None:
    """The watched tenth shares no group with what is learned from."""
    groups = np.repeat(np.arange(30), 3).astype(str)
    y = np.repeat(np.arange(30) % 2, 3)
    watched = held_out(y, groups, k=10, seed=0)
    assert 0 < watched.sum() < 30
    assert not set(groups[watched]) & set(groups[~watched])


def test_views_are_entries_of_their_own(spots: Path) -> None:
    """Three views: three sets of maps, each keyed by how it was drawn, none computed twice."""
    finetune(str(spots), NET, views=3, **QUICK)
    entries = {e.folder: e.key for e in find_entries(cache_root(stored("spots")))}
    assert sorted("view" in key.preprocess for key in entries.values()) == [False, True, True]
    assert {key.blocks for key in entries.values() if "view" in key.preprocess} == {("features.8",)}
    stamps = {path: path.stat().st_mtime_ns for folder in entries for path in folder.rglob("*.h5")}
    finetune(str(spots), NET, views=2, flip="mirror", **QUICK)
    assert {path: path.stat().st_mtime_ns for folder in entries for path in folder.rglob("*.h5")} == stamps
    assert len(find_entries(cache_root(stored("spots")))) == 4


def test_all_blocks_are_trained_on_images(spots: Path) -> None:
    """BLOCKS=all caches no maps, and its weights are all the network's."""
    folder = folder_of(finetune(str(spots), NET, blocks="all", views=2, **QUICK))
    (entry,) = find_entries(cache_root(stored("spots")))
    assert not entry.files("maps/features.8")
    tensors, about = load_network(folder / "network.safetensors")
    assert "features.0.weight" in tensors
    assert about["after"] == ""
    assert load_run(folder).name == f"finetuned on {NET} all blocks, 2 views, epochs 2, batch 8"


def test_a_module_inside_a_block(spots: Path) -> None:
    """BLOCKS=features.11 thaws from that module on; its boundary has an entry of its own."""
    folder = folder_of(finetune(str(spots), NET, blocks="features.11", **QUICK))
    tensors, _ = load_network(folder / "network.safetensors")
    assert {name.split(".")[1] for name in tensors if name.startswith("features")} == {"11", "12"}


def test_the_thawed_network_is_a_backbone(spots: Path, tmp_path: Path) -> None:
    """It extracts another data set under a key of its own, and is refused on the images that it was fine-tuned on."""
    other, name = draw(tmp_path / "other", seed=5), load_dataset(str(spots)).name
    with pytest.raises(BadWeights, match="which was not done yet; finetune squeezenet1_1 on its path"):
        extract(str(other), f"{NET}@{name}")
    finetune(str(spots), NET, **QUICK)
    extract(str(other), f"{NET} {NET}@{name}", precision="float32")
    keys = {e.key.backbone: e.key for e in find_entries(cache_root(stored("other")))}
    assert keys[NET].weights != keys[f"{NET}@{name}"].weights
    train_heads(str(other), f"{NET}@{name}", heads="lda", precision="float32")
    extract(str(spots), f"{NET}@{name}", precision="float32")
    with pytest.raises(CacheError, match="has seen their labels"):
        train_heads(str(spots), f"{NET}@{name}", heads="lda", precision="float32")


def test_cross_validation(spots: Path) -> None:
    """PROTOCOL=cv: every image three times out of fold, none kept apart."""
    run = load_run(folder_of(finetune(str(spots), NET, protocol="cv", epochs=1, batch_size=16)))
    assert len(run.predictions.ids) == 3 * 32
    assert (run.predictions.fold >= 0).all()
    assert run.record.repeats == 3


def command(spots: Path, *more: str) -> list[str]:
    """Return the command line of a short fine-tuning."""
    flags = ["--dataset", str(spots), "--backbone", NET, "--batch-size", "8", "--epochs", "3", "--precision", "float32"]
    return [sys.executable, "-m", "pipeline", "finetune", *flags, *more]


def test_killed_in_the_middle_it_goes_on_bit_for_bit(spots: Path, tmp_path: Path) -> None:
    """kill -9 in the second fold: the same command again gives the run and the network of an undisturbed one."""
    surroundings = os.environ | {"FIRN_ARTIFACTS": str(tmp_path / "killed")}
    with subprocess.Popen(command(spots), cwd=ROOT, env=surroundings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("fold 2 of 5, epoch 2"):
                process.send_signal(signal.SIGKILL)
                break
    assert not list((tmp_path / "killed").rglob("run.json"))
    assert list((tmp_path / "killed").rglob("*.checkpoint"))
    again = subprocess.run(command(spots), cwd=ROOT, env=surroundings, capture_output=True, text=True, check=True)
    assert "fold 1 of 5" not in again.stderr
    undisturbed = os.environ | {"FIRN_ARTIFACTS": str(tmp_path / "whole")}
    subprocess.run(command(spots), cwd=ROOT, env=undisturbed, capture_output=True, check=True)
    for name in ("predictions.csv", "network.safetensors"):
        (killed,), (whole,) = ((tmp_path / kind).rglob(name) for kind in ("killed", "whole"))
        if name == "predictions.csv":
            assert killed.read_bytes() == whole.read_bytes()
        else:
            a, b = load_network(killed)[0], load_network(whole)[0]
            assert all(np.array_equal(a[key].numpy(), b[key].numpy()) for key in b)
    assert not list((tmp_path / "killed").rglob("*.checkpoint"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--recipe", "adamv"], "recipe"),
        (["--blocks", "layer9"], "layer9"),
        (["--flip", "mirror"], "VIEWS=4"),
        (["--norm", "thawed"], "frozen"),
    ],
)
def test_wrong_input(spots: Path, flags: list[str], said: str) -> None:
    """One line, exit code 2, nothing extracted."""
    done = subprocess.run(command(spots, *flags), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not find_entries(cache_root(load_dataset(str(spots)).name))


def test_a_full_disk_is_said_before_anything_is_written(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the maps is compared with what is free."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(FirnError, match="are free"):
        finetune(str(spots), NET, **QUICK)
    assert not find_entries(cache_root(load_dataset(str(spots)).name))


def test_a_class_of_too_few_images_is_named(tmp_path: Path) -> None:
    """By the heads and by fine-tuning alike: a fold of two leaves one, which nothing can be held out of."""
    data = draw(tmp_path / "pairs", per_class=6, test=1, size=32)
    for n in range(2, 6):
        (data / "train" / "spot" / f"train{n:03}.png").unlink()
    extract(str(data), NET, precision="float32")
    said = r"class spot has 1 image left to learn from where a fold is held out, and 2 are needed"
    with pytest.raises(BadDataset, match=said):
        train_heads(str(data), NET, heads="logistic", precision="float32")
    with pytest.raises(BadDataset, match=said):
        finetune(str(data), NET, **QUICK)
