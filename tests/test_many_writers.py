"""Several processes fill one entry at once while another reads: nothing lost, nothing twice, the end as of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import draw

from features.backbones import load_spec
from features.cache import Digests, Entry, Key, open_entry
from features.cache.entry import cache_root
from features.cache.lease import Leases
from features.cache.verify import verify
from features.datasets import load_dataset
from features.errors import CacheError
from features.storage import temporary_name
from features.views import View, pooled_view

ROOT = Path(__file__).parents[1]
IMAGES = 144
WRITER = """
import json, sys
import torch
torch.set_num_threads(1)
import features.extraction.loop as run
from features.backbones import load_spec
from features.cache import open_entry
from features.datasets import load_dataset

run._REFRESH_EVERY, run._POLL = 0.05, 0.05
dataset, spec = load_dataset(sys.argv[1]), load_spec("squeezenet1_1")
entry = open_entry(dataset.name, spec.key(preprocess="squash", precision="float32"))
stop = int(sys.argv[2])

def progress(done, total):
    if done == stop:
        raise KeyboardInterrupt

print("ready", flush=True)
sys.stdin.readline()
try:
    job = run.Job(entry, spec, "squash")
    done = run.extract(dataset, [job], batch_size=4, shard_rows=8, workers=1, progress=progress)
    print(json.dumps([done.images, done.skipped]), flush=True)
except KeyboardInterrupt:
    print(json.dumps([-1, -1]), flush=True)
"""


class Writers:
    """Processes that stand ready and start to extract together."""

    def __init__(self, folder: Path, artifacts: Path, stops: list[int]) -> None:
        environment = {**os.environ, "FIRN_ARTIFACTS": str(artifacts), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        commands = [[sys.executable, "-c", WRITER, str(folder), str(stop)] for stop in stops]
        self.processes = [subprocess.Popen(c, cwd=ROOT, env=environment, **pipes) for c in commands]  # type: ignore[call-overload]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def start(self) -> None:
        """Fire the starting gun."""
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()

    def living(self) -> bool:
        """Tell whether some are still at work."""
        return any(process.poll() is None for process in self.processes)

    def close(self) -> list[list[int]]:
        """Wait for all; return what each computed and skipped; nothing for one that was killed."""
        outs = [process.communicate(timeout=120)[0] for process in self.processes]
        return [json.loads(out) for out in outs if out]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of drawn images whose digests are remembered: it is older than two seconds."""
    drawn = draw(tmp_path_factory.mktemp("many") / "set", per_class=56, test=16)
    time.sleep(2.1)
    return drawn


def key() -> Key:
    """Return the key of the entry that the writers fill."""
    return load_spec("squeezenet1_1").key(preprocess="squash", precision="float32")


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> View:
    """Return what one process alone makes of the folder."""
    artifacts = tmp_path_factory.mktemp("alone")
    writers = Writers(folder, artifacts, [-1])
    writers.start()
    assert writers.close() == [[IMAGES, 0]]
    return read(Entry(artifacts / "cache" / load_dataset(str(folder)).name / key().folder(), key()))


def read(entry: Entry) -> View:
    """Return all pooled features."""
    return pooled_view(entry, list(entry.key.blocks), "both")


def look(entry: Entry, alone: View) -> int:
    """Read while others write: an error only before there is a master; all rows right, none twice. Return how many."""
    if not entry.master.exists():
        return 0
    view = read(entry)
    assert len(np.unique(view.ids)) == len(view.ids)
    at = np.searchsorted(alone.ids, view.ids)
    for seen, wanted in zip(view, alone, strict=True):
        assert np.array_equal(seen, wanted[at])
    return len(view.ids)


def assert_complete(entry: Entry, folder: Path, alone: View) -> None:
    """Check that an entry is ready, whole, tidy and bit for bit as one process alone makes it."""
    dataset = load_dataset(str(folder))
    memo = Digests.load(cache_root(dataset.name) / "digests.h5")
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo)
    assert entry.state(dataset, digests, ["pooled"]) == ("ready", f"{IMAGES} images")
    assert all(np.array_equal(now, then) for now, then in zip(read(entry), alone, strict=True))
    assert verify(entry) == []
    assert not [p for p in cache_root(dataset.name).rglob(".*") if p.is_file()]


def looks(entry: Entry, alone: View, writers: Writers) -> Iterator[int]:
    """Yield how many rows a reader sees, over and over until the writers end; never fewer than before."""
    before = 0
    while writers.living():
        seen = look(entry, alone)
        assert seen >= before, "an image went out of the view"
        yield (before := seen)
        time.sleep(0.01)


def test_four_writers_and_a_reader(folder: Path, alone: View) -> None:
    """The work is shared, every look is right, and the end is that of a single run."""
    entry = open_entry(load_dataset(str(folder)).name, key())
    writers = Writers(folder, Path(os.environ["FIRN_ARTIFACTS"]), [-1] * 4)
    writers.start()
    seen = list(looks(entry, alone, writers))
    done = writers.close()
    assert len(done) == 4
    assert IMAGES <= sum(computed for computed, _ in done) < 1.5 * IMAGES
    assert sum(computed > 0 for computed, _ in done) >= 2, "more than one worked"
    assert len(set(seen)) >= 3, "the reader saw it grow"
    assert_complete(entry, folder, alone)


def test_one_of_four_is_killed_and_one_is_stopped(folder: Path, alone: View) -> None:
    """The others finish the work of one that dies with its leases and of one that ends by Ctrl-C."""
    entry = open_entry(load_dataset(str(folder)).name, key())
    writers = Writers(folder, Path(os.environ["FIRN_ARTIFACTS"]), [-1, -1, -1, 20])
    writers.start()
    for seen in looks(entry, alone, writers):
        if seen >= 16 or len(entry.files("pooled")) >= 3:
            writers.processes[0].kill()
    done = writers.close()
    assert writers.processes[0].returncode == -9
    assert sorted(computed for computed, _ in done)[0] == -1
    assert len(done) == 3
    entry.clean()  # as the next writer does: nobody is left who would tidy up after the killed one
    assert_complete(entry, folder, alone)


def test_latecomer_does_not_impoverish_the_master(folder: Path, alone: View) -> None:
    """One that starts on a finished entry without memo and is stopped early leaves the master as it was."""
    artifacts = Path(os.environ["FIRN_ARTIFACTS"])
    first = Writers(folder, artifacts, [-1])
    first.start()
    first.close()
    entry = open_entry(load_dataset(str(folder)).name, key())
    memo = cache_root(load_dataset(str(folder)).name) / "digests.h5"
    memo.unlink()
    late = Writers(folder, artifacts, [20])
    late.start()
    assert late.close() == [[-1, -1]]
    assert look(entry, alone) == IMAGES
    partial = Digests.load(memo)
    assert partial is not None
    assert 0 < len(partial.ids) < IMAGES


def test_claims_of_nobody(tmp_path: Path) -> None:
    """A lease without text, or with zeros after a power cut, holds for a moment; a released one is free at once."""
    for text in (b"", b"\0" * 40, b"[]", b'{"host": 1}'):
        path = tmp_path / ".unit-000001.claim"
        path.write_bytes(text)
        assert not Leases(tmp_path).acquire(1), "it may be on its way to the disk"
        os.utime(path, (time.time() - 3,) * 2)
        mine = Leases(tmp_path)
        assert mine.acquire(1)
        mine.release(1)
        assert not path.exists()


def test_claim_of_an_earlier_process_of_the_same_number(tmp_path: Path) -> None:
    """In a container that is started again every process has the number it had: an older file is not its own."""
    path = tmp_path / ".unit-000001.claim"
    assert Leases(tmp_path).acquire(1)
    assert not Leases(tmp_path).acquire(1)
    os.utime(path, (time.time() - 7200,) * 2)
    assert Leases(tmp_path).acquire(1)


def test_turns_are_taken_one_after_the_other(tmp_path: Path) -> None:
    """Who waits too long goes on without; the lease of the other is left alone."""
    first, second = Leases(tmp_path), Leases(tmp_path)
    with first.turn():
        start = time.monotonic()
        with second.turn(patience=0.1):
            assert time.monotonic() - start >= 0.1
        assert not second.acquire(0)
    assert second.acquire(0)


def test_next_writer_clears_up_after_the_dead_only(spots: Path) -> None:
    """Temporary files and leases of a dead process go, beside the memo too; those of a living one stay."""
    dataset = load_dataset(str(spots))
    entry = open_entry(dataset.name, key())
    entry.clean()
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = [], []
    for place in (cache_root(dataset.name) / "digests.h5", entry.master, entry.shards / "pooled-0.h5"):
        mine = temporary_name(place)
        living.append(mine)
        dead.append(mine.with_name(mine.name.replace(f"~{os.getpid()}~", f"~{ended.pid}~")))
    assert Leases(entry.shards).acquire(4)
    living.append(entry.shards / ".unit-000004.claim")
    dead.append(entry.shards / ".unit-000005.claim")
    for path in (*dead, *living[:-1]):
        path.write_bytes(b"half")
    dead[-1].write_text(living[-1].read_text().replace(str(os.getpid()), str(ended.pid)))
    with pytest.raises(CacheError):
        read(entry)
    assert all(path.exists() for path in dead), "a reader removes nothing"
    assert sorted(entry.clean()) == sorted(dead)
    assert all(path.exists() for path in living)
