"""Decoding in other processes: the same as in threads, whatever becomes of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_extraction import everything, job, run, same

from features.backbones import load_spec
from features.datasets.listing import FileSource
from features.errors import FirnError
from features.extraction import loop, processes
from features.extraction.prefetch import Prepared, prepare
from features.extraction.processes import FEWEST, IMAGES_FROM, DecodingProcesses, pays
from features.images import Geometry
from features.inspection.throughput import measure_rate

ROOT = Path(__file__).parents[1]
GEOMETRIES = (Geometry("squash", 20, 32, "bilinear"), Geometry("crop", 13, 16, "bilinear"))  # one of an odd size


@pytest.fixture
def odd(tmp_path: Path) -> tuple[FileSource, list[str]]:
    """Return 150 files: grey, colour, deep, damaged, none."""
    rng = np.random.default_rng(0)
    for i in range(146):
        cv2.imwrite(str(tmp_path / f"{i:03d}.png"), rng.integers(0, 256, (30, 40, 3) if i % 3 else (30, 40), np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), rng.integers(0, 65536, (31, 29), np.uint16))
    (tmp_path / "damaged.png").write_bytes((tmp_path / "001.png").read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    return FileSource(tmp_path), sorted([*os.listdir(tmp_path), "missing.png"])


@pytest.fixture
def two(odd: tuple[FileSource, list[str]]) -> Iterator[DecodingProcesses]:
    found = DecodingProcesses(odd[0], GEOMETRIES, 2)
    yield found
    found.close()


def by_threads(source: FileSource, ids: list[str]) -> list[Prepared]:
    rows = range(len(ids))
    return [*prepare(source, ids, rows, GEOMETRIES, wanted=lambda sha256: True, workers=2, ahead=9)]


def assert_equal(found: list[Prepared], wanted: list[Prepared]) -> None:
    """Seconds apart."""
    assert [(p.image, p.sha256, p.error) for p in found] == [(p.image, p.sha256, p.error) for p in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert [a.dtype for a in ours.pixels] == [a.dtype for a in theirs.pixels]
        assert all(np.array_equal(a, b) for a, b in zip(ours.pixels, theirs.pixels, strict=True))


def ended(pids: list[int]) -> bool:
    """Wait until no process of these numbers runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_equal_to_threads(odd: tuple[FileSource, list[str]], two: DecodingProcesses) -> None:
    source, ids = odd
    wanted = by_threads(source, ids)
    assert sum(bool(p.error) for p in wanted) == 3
    assert {a.dtype.str for p in wanted for a in p.pixels} == {"|u1", "<f4"}
    assert_equal([*two.prepare(ids, range(len(ids)), ahead=40)], wanted)
    some = [7, 3, 149, 20]
    assert [p.image for p in two.prepare(ids, some, ahead=40)] == some, "as often as one likes"


def test_a_killed_process_loses_nothing(odd: tuple[FileSource, list[str]], two: DecodingProcesses) -> None:
    source, ids = odd
    first = two.pids
    coming = two.prepare(ids, [*range(len(ids))] * 4, ahead=0)
    found = [next(coming)]
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    assert_equal([*found, *coming], by_threads(source, ids) * 4)
    assert set(two.pids).isdisjoint(first)


DEADLY = """import os, signal
from features.datasets.listing import FileSource

class Deadly(FileSource):
    def read(self, image):
        return os.kill(os.getpid(), signal.SIGKILL) if image == "005.png" else super().read(image)
"""


def test_an_image_that_kills_is_left_out(
    odd: tuple[FileSource, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = odd
    (tmp_path / "firn_deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    deadly = DecodingProcesses(import_module("firn_deadly").Deadly(source.root), GEOMETRIES, 1)
    found = [*deadly.prepare(ids[:40], range(40), ahead=40)]
    deadly.close()
    (lost,) = [p for p in found if p.error]
    assert lost.image == 5
    assert lost.error == "005.png: the process that decodes it died, twice"
    assert_equal([p for p in found if p is not lost], [p for p in by_threads(source, ids[:40]) if p.image != 5])


def test_processes_that_do_not_begin(odd: tuple[FileSource, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Are told at once, and not image by image."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    dead = DecodingProcesses(odd[0], GEOMETRIES, 2)
    with pytest.raises(FirnError, match=r"exit code is 1.*run again with WORKERS=3"):
        next(dead.prepare(odd[1], range(9), ahead=9))
    dead.close()


def test_none_outlives_the_one_that_asks(odd: tuple[FileSource, list[str]], two: DecodingProcesses) -> None:
    """Nor is one left by an interruption in the middle."""
    source, ids = odd
    code = (
        "import time; from features.extraction.processes import *; "
        f"p = DecodingProcesses(FileSource({str(source.root)!r}), (), 2); print(*p.pids, flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as asking:
        assert asking.stdout
        pids = [int(pid) for pid in asking.stdout.readline().split()]
        assert len(pids) == 2
        asking.kill()
    assert ended(pids)
    coming = two.prepare(ids, range(len(ids)), ahead=40)
    next(coming)
    coming.close()
    two.close()
    assert ended(two.pids)


def test_when_it_pays(odd: tuple[FileSource, list[str]], tmp_path: Path) -> None:
    files = odd[0]
    assert pays("cuda", FEWEST, files, IMAGES_FROM)
    assert not pays("cpu", 64, files, 10**6), "a network on the same cores is slower than its decoding"
    assert not pays("cuda:1", FEWEST - 1, files, IMAGES_FROM)
    assert not pays("cuda", 64, files, IMAGES_FROM - 1)


@pytest.mark.parametrize(("patience", "images"), [(60.0, 144), (0.0, 16)])
def test_the_rate_that_doctor_measures_is_of_what_would_decode(
    odd: tuple[FileSource, list[str]], monkeypatch: pytest.MonkeyPatch, patience: float, images: int
) -> None:
    """Processes where the whole extraction has them, which end with the measurement; whole batches count."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(processes, "pays", lambda *case: asked.append(case) or True)
    started: list[DecodingProcesses] = []
    monkeypatch.setattr(processes, "DecodingProcesses", lambda *a: started.append(DecodingProcesses(*a)) or started[-1])
    limits: dict[str, Any] = {"workers": 2, "images": 10**6, "most_seconds": patience}
    how: dict[str, Any] = {"device": "cpu", "precision": "float32", "batch_size": 16, **limits}
    rate = measure_rate(*odd, [load_spec("squeezenet1_1")], "squash", **how)
    assert asked == [("cpu", 2, odd[0], 10**6)]
    assert rate.images == images, "147 can be read"
    assert rate.per_second == rate.images / rate.seconds
    (those,) = started
    assert ended(those.pids)


def test_an_extraction_by_processes(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the bit, and none where images only have to be read again."""
    counts: list[int] = []

    def told(device: str, workers: int, source: object, images: int) -> bool:
        counts.append(images)
        return images > 0

    monkeypatch.setattr(loop, "pays", told)
    started: list[DecodingProcesses] = []
    monkeypatch.setattr(loop, "DecodingProcesses", lambda *a: started.append(DecodingProcesses(*a)) or started[-1])
    (spots / "train" / "spot" / "broken.png").write_bytes(b"no image")
    one = job(spots)
    outcome = run(spots, one)
    assert (outcome.images, [*outcome.left_out]) == (32, ["train/spot/broken.png"])
    assert len(started) == 1
    assert ended(started[0].pids)
    for path in spots.rglob("*.png"):
        path.touch()
    again = run(spots, one)
    assert (again.images, again.skipped, len(started)) == (0, 32, 1 + (counts[-1] > 0))
    assert counts == [33, 1], "the broken one is tried again, for it may have changed"
    monkeypatch.setattr(loop, "pays", lambda *_: False)
    plain = job(spots, name="plain")
    run(spots, plain)
    assert same(everything(one.entry), everything(plain.entry))
