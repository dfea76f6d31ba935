"""Extraction on Ray: the same features as on one machine, also when a worker dies in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import draw

from features.backbones import load_spec
from features.cache import Entry, open_entry
from features.datasets import load_dataset
from features.errors import FirnError
from features.extraction.job import Job, Outcome
from features.extraction.loop import extract
from features.extraction.on_ray import extract_on_ray, ranges, worker_slots
from features.views import pooled_view

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: '.[ray]'")
ROOT = Path(__file__).parents[1]


def job(name: str) -> Job:
    """Return the job of filling a squeezenet1_1 entry."""
    spec = load_spec("squeezenet1_1")
    return Job(open_entry(name, spec.key(preprocess="squash", precision="float32")), spec, "squash")


def everything(entry: Entry) -> list[np.ndarray]:
    """Return all that a reader sees of an entry."""
    view = pooled_view(entry, list(entry.key.blocks), "both")
    return [view.X, view.y, view.ids, view.groups, view.splits]


def kill_a_worker(entry: Entry, killed: list[int], until: float) -> None:
    """Wait for a committed shard, then kill a process that has a lease."""
    while not killed and time.monotonic() < until:
        for lease in entry.shards.glob(".unit-*.claim") if entry.files("pooled") else ():
            try:
                process = int(json.loads(lease.read_text())["process"])
                os.kill(process, signal.SIGKILL)
            except (OSError, ValueError):
                continue
            killed.append(process)
            return
        time.sleep(0.01)


@needs_ray
def test_two_workers_one_of_them_killed(tmp_path: Path) -> None:
    """A range whose worker dies is redone; all numbers are those of one undisturbed process, and none twice."""
    folder = draw(tmp_path / "set", per_class=40, test=10)
    (folder / "train" / "spot" / "train002.png").write_bytes(b"text")
    dataset, alone, spread = load_dataset(str(folder)), job("alone"), job("spread")
    extract(dataset, [alone], batch_size=4, shard_rows=8)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(spread.entry, killed, time.monotonic() + 300))
    killer.start()
    outcome = extract_on_ray(dataset, [spread], batch_size=4, shard_rows=8, workers=1)
    killer.join()
    assert killed and killed[0] != os.getpid()
    assert list(outcome.left_out) == ["train/spot/train002.png"]
    assert all(np.array_equal(a, b) for a, b in zip(everything(alone.entry), everything(spread.entry), strict=True))
    assert len(spread.entry.scan("pooled")[0]) == sum(
        len(spread.entry.digests_in(f)) for f in spread.entry.files("pooled")
    )
    assert not [name for name in os.listdir(spread.entry.shards) if name.startswith(".")]
    assert extract(dataset, [spread]).images == 0


def test_without_ray_the_error_says_what_to_install(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENGINE=ray without Ray is one line and exit code 2; an engine of another name is answered with a guess."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FirnError, match=r"Ray, which is not installed; run: pip install"):
        extract_on_ray(load_dataset(str(spots)), [job("spots")])
    command = [sys.executable, "-m", "pipeline", "extract", "--dataset", str(spots), "--engine", "rya"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "did you mean ray" in done.stderr


def test_ranges_are_whole_partitions() -> None:
    """Every lacking image is in one range, ranges begin where partitions do, finished ones are left out."""
    lacking = np.ones(100, dtype=bool)
    assert ranges(lacking, 8, 4) == [(0, 24), (24, 48), (48, 72), (72, 100)]
    lacking[20:50] = False
    assert ranges(lacking, 8, 4) == [(0, 24), (48, 72), (72, 100)]
    assert ranges(lacking[:3], 8, 4) == [(0, 3)]


def test_one_worker_per_gpu() -> None:
    """A worker has a GPU and its share of the cores; without GPUs the cores are shared out."""
    assert worker_slots({"CPU": 64.0, "GPU": 8.0}, "cuda", 0) == (8, 8)
    assert worker_slots({"CPU": 16.0}, "cpu", 0) == (4, 4)
    assert worker_slots({"CPU": 2.0}, "cpu", 1) == (1, 2)
    with pytest.raises(FirnError, match="no GPU; run again with DEVICE=cpu"):
        worker_slots({"CPU": 2.0}, "cuda", 0)


def test_work_of_all_processes_is_shared_out() -> None:
    """How busy a stage was counts all threads of all processes."""
    seconds = defaultdict(float, {"wall": 10.0, "decode": 16.0, "forward": 18.0})
    outcome = Outcome(seconds=seconds, threads={"decode": 2}, processes=2)
    assert outcome.busy() == {"read": 0.0, "decode": 0.4, "forward": 0.9, "write": 0.0}
