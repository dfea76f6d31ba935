"""Heads on Ray: the same runs as on one machine, also when a worker dies in the middle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from verbs_for_tests import asked, extract, train_heads

from features.errors import FirnError, UnknownName
from features.ray_cluster import Home
from models.runs.on_ray import Order, train_on_ray, work
from models.runs.options import HeadOptions, RunOptions
from models.validation.predictions import load_predictions

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: '.[ray]'")
NET = "squeezenet1_1"
RECIPE = {"precision": "float32", "device": "cpu"}


def train(folder: Path, heads: str, engine: str) -> list[Path]:
    """Train some heads; return the folders of their runs."""
    lines = train_heads(str(folder), NET, heads=heads, precision="float32", device="cpu", engine=engine)
    return [Path(line.split()[-1]) for line in lines]


def numbers(run: Path) -> np.ndarray:
    """Return the probabilities that a run said."""
    return load_predictions(run / "predictions.csv", ("normal", "spot")).proba


def kill_a_worker(killed: list[int], until: float) -> None:
    """Wait until a process of Ray's works on a run, then kill it."""
    while not killed and time.monotonic() < until:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if place.read_bytes().startswith(b"ray::work"):
                    killed.append(int(place.parent.name))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            except OSError:
                continue
        time.sleep(0.005)


@needs_ray
def test_a_killed_worker_changes_nothing(spots: Path) -> None:
    """A run whose worker dies is trained again; all runs say what one process says, and the stack is made of them."""
    extract(str(spots), NET, precision="float32", device="cpu")
    alone = {run.name: numbers(run) for run in train(spots, "logistic lda knn stack", "local")}
    for run in train(spots, "logistic lda knn stack", "local"):
        shutil.rmtree(run)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(killed, time.monotonic() + 300))
    killer.start()
    spread = train(spots, "logistic lda knn stack", "ray")
    killer.join()
    assert killed
    assert [run.name for run in spread] == list(alone)
    for run in spread:
        np.testing.assert_allclose(numbers(run), alone[run.name], atol=1e-6)
    stamps = [(run / "run.json").stat().st_mtime_ns for run in spread]
    assert [(run / "run.json").stat().st_mtime_ns for run in train(spots, "logistic lda knn stack", "ray")] == stamps


def test_a_worker_trains_what_is_lacking(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are there and heads that cannot run are not sent out; a worker's run is that of one process."""
    extract(str(spots), NET, precision="float32", device="cpu")
    (before,) = train(spots, "lda", "local")
    sent: list[Order] = []

    def at_once(orders: list[Order]) -> None:
        sent.extend(orders)
        for order in orders:
            assert work(order, Home.here()) == []

    monkeypatch.setattr("pipeline.train_heads.train_on_ray", at_once)
    train(spots, "lda logistic ridge", "ray")
    assert [order.head for order in sent] == ["logistic", "ridge"]
    sent.clear()
    shutil.rmtree(before)
    wanted, _ = train(spots, "lda ridge", "local"), shutil.rmtree(before)
    kept = numbers(wanted[1])
    train_heads(str(spots), NET, heads="all", precision="float32", device="cpu", engine="ray")
    assert "lda" in [order.head for order in sent]
    assert not {"map", "attention", "spatial", "ridge", "stack"} & {order.head for order in sent}, "there is no map"
    assert np.array_equal(numbers(wanted[1]), kept)


def test_what_a_worker_says_comes_back(spots: Path) -> None:
    """Lines that a worker writes are returned; its errors are raised."""
    extract(str(spots), NET, precision="float32", device="cpu")
    order = Order(NET, "map", asked(spots, NET, **RECIPE), HeadOptions(), RunOptions())
    (line,) = work(order, Home.here())
    assert line.startswith(f"map on {NET} is left out: it needs feature maps; run: make extract")
    with pytest.raises(FirnError, match="no feature maps"):
        work(order._replace(view=HeadOptions("map")), Home.here())


def test_wrong_input(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, no such engine, a budget: one line that says what to type; without work Ray is not asked for."""
    monkeypatch.setitem(sys.modules, "ray", None)
    extract(str(spots), NET, precision="float32", device="cpu")
    with pytest.raises(FirnError, match=r"Ray, which is not installed; run: pip install"):
        train(spots, "lda", "ray")
    with pytest.raises(UnknownName, match="did you mean ray"):
        train(spots, "lda", "rya")
    with pytest.raises(FirnError, match="leave ENGINE= away, or BUDGET="):
        train_heads(str(spots), NET, budget=5, engine="ray")
    train_on_ray([])
