"""reproduce: what a receipt says comes out again, and what does not is said, with exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stored
from PIL import Image
from verbs_for_tests import reproduce, selected

from features.devices import DEVICES, PRECISIONS
from features.errors import CacheError
from models.runs.record import Run, load_run, load_runs
from pipeline.reproduce import BUDGETS, Budget, budget_of, compared

ROOT = Path(__file__).parents[1]


def of(head: str) -> Run:
    """Return the run of a head with the plainest view."""
    return next(run for run in load_runs(stored("spots")) if run.record.head == head and run.record.pool != "both")


def everything(root: Path) -> dict[str, int]:
    """Return the files of a folder and when they were written, but for what is remembered of weights."""
    paths = (p for p in root.rglob("*") if p.is_file() and p.name != "recipes.json")
    return {str(p): p.stat().st_mtime_ns for p in paths}


def test_the_same_numbers(workshop: Path) -> None:
    """Extracted and trained anew in a place of its own: bit for bit, and nothing is left or touched."""
    run, before = of("finetuned"), everything(workshop)
    lines, well = reproduce(selected(run.folder))
    assert well
    assert lines[-1] == "verdict: the same numbers"
    assert f"{len(run.predictions.ids)} predictions: mean distance" in "\n".join(lines)
    assert everything(workshop) == before
    assert os.environ["FIRN_ARTIFACTS"] == str(workshop / "artifacts")


def test_a_stack_and_its_runs(workshop: Path) -> None:
    """All that it combines is made again first."""
    lines, well = reproduce(selected(dataset=str(workshop / "spots"), heads="stack"))
    assert (lines[0].startswith("stack of 3 runs"), well) == (True, True), lines


def test_a_image_has_changed(workshop: Path, tmp_path: Path) -> None:
    """Other images give other numbers: exit code 1, and the reason before the verdict."""
    folder = Path(shutil.copytree(of("logistic").folder, tmp_path / "heads" / "logistic"))
    images = Path(shutil.copytree(workshop / "spots", tmp_path / "spots"))
    facts = json.loads((folder / "run.json").read_text()) | {"asked": str(images)}
    (folder / "run.json").write_text(json.dumps(facts))
    for image in sorted((images / "train" / "spot").iterdir())[:4]:
        Image.new("L", (48, 48), 30).save(image)
    command = [sys.executable, "-W", "error", "-m", "pipeline", "reproduce", "--run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "images, labels, splits or groups have changed since" in done.stdout
    assert done.stdout.splitlines()[-1] == "verdict: DIFFERS by more than the budget"


def moved(run: Run, by: float, **facts: Any) -> Run:
    """Return a run whose probabilities are pulled towards their middle."""
    predictions = run.predictions._replace(proba=(1 - by) * run.predictions.proba + by / 2)
    return replace(run, predictions=predictions, record=replace(run.record, **facts))


def test_verdicts(workshop: Path) -> None:
    """The same, within, beyond; what else differs is told."""
    run, budget = of("logistic"), ("cpu in float32", Budget(0.002, 0.002))
    assert compared(run, run, budget)[0][-1] == "verdict: the same numbers"
    lines, well = compared(run, moved(run, 1e-3, versions={"numpy": "0.1"}, chosen={"C": 7}), budget)
    assert (lines[-1], well) == ("verdict: within the budget", True)
    assert any(line.endswith(", now 0.1") for line in lines)
    assert any(line.endswith('now {"C": 7}') for line in lines)
    lines, well = compared(run, moved(run, 0.1), budget)
    assert (lines[-1], well) == ("verdict: DIFFERS by more than the budget", False)
    other = run.predictions._replace(fold=np.roll(run.predictions.fold, 1))
    assert not compared(run, replace(run, predictions=other), budget)[1]


def test_every_device_and_precision_has_a_budget(workshop: Path) -> None:
    """One more device or precision is one more row; fine-tuned networks get more room, stacks that of the widest."""
    assert set(BUDGETS) == {(d, p) for d in DEVICES if d != "auto" for p in PRECISIONS if p != "auto"} - {
        ("cpu", "tf32")
    }
    words, plain = budget_of(of("logistic"), [of("logistic")], "cpu")
    assert words == "cpu in float32"
    wide, both = budget_of(of("stack"), [of("logistic"), of("finetuned")], "cuda:1")
    assert wide == "cuda in float32, fine-tuned"
    assert both.proba > plain.proba


def test_what_is_not_there(workshop: Path, tmp_path: Path) -> None:
    """No run, a stack whose runs are gone."""
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(CacheError, match="expected RUN= to be the folder of a run"):
            reproduce(selected(place))
    run = of("stack")
    folder = Path(shutil.copytree(run.folder, tmp_path / "stack"))
    (folder / "run.json").write_text(json.dumps({**run.record.to_json(), "bases": ["gone/logistic"]}))
    with pytest.raises(CacheError, match="no whole run in"):
        reproduce(selected(folder))
    assert load_run(run.folder).record.bases
