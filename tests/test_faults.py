"""Kill, power cut, full disk, read-only disk, exception, Ctrl-C: what was committed stays, the end is the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faults_for_tests import (
    BATCH,
    ROWS,
    Fault,
    Nursery,
    Trial,
    Undisturbed,
    everything,
    hidden,
    images,
    moments,
    only_right_rows,
    resume,
    snapshot,
    trial,
    undisturbed,
)

TOGETHER = 2  # trials at once


@pytest.fixture(scope="module")
def nurseries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Nursery]]:
    """Return processes with torch loaded."""
    folder = tmp_path_factory.mktemp("nurseries")
    some = [Nursery(folder / str(i)) for i in range(TOGETHER)]
    yield some
    for nursery in some:
        nursery.close()


@pytest.fixture(scope="module")
def like(nurseries: list[Nursery], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return what an undisturbed extraction gives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(nurseries[0], images(folder / "set"), folder / "artifacts")


def one_of_each(like: Undisturbed) -> dict[tuple[str, str, str], Fault]:
    """Return one moment, chosen at random, of every (when, call, kind of file)."""
    rng = np.random.default_rng(0)
    return {kind: faults[int(rng.integers(len(faults)))] for kind, faults in moments(like.calls).items()}


def all_trials(
    nurseries: list[Nursery], like: Undisturbed, faults: list[Fault], folder: Path, *, cut: bool = False
) -> list[Trial]:
    """Try all faults, several at once."""

    def some(first: int) -> list[Trial]:
        done = []
        for i in range(first, len(faults), TOGETHER):
            artifacts = folder / f"trial{i}"
            done.append(trial(nurseries[first], like, artifacts, faults[i], cut=i if cut else None))
            shutil.rmtree(artifacts)
        return done

    with ThreadPoolExecutor(TOGETHER) as pool:
        return [one for done in pool.map(some, range(TOGETHER)) for one in done]


def test_killed_at_any_moment(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """SIGKILL before, inside and after every kind of call on every kind of file; `trial` holds each to the truth."""
    kinds = one_of_each(like)
    for file in ("pooled", "maps", "features.h5", "digests.h5"):
        for when, call in (("inside", "write"), ("before", "fsync"), ("before", "replace"), ("after", "replace")):
            assert (when, call, file) in kinds
    assert ("after", "open", "claim") in kinds, "a lease without text"
    done = all_trials(nurseries, like, list(kinds.values()), tmp_path)
    assert sum(one.answer["killed"] == signal.SIGKILL for one in done) >= 35
    assert sum(bool(one.left) for one in done) >= 20, "the dead left something for the next writer to clean"
    assert {one.kept for one in done} >= {0, ROWS, 3 * ROWS}
    assert {one.seen for one in done} == {0, 3 * ROWS}
    assert max(one.lost for one in done) <= ROWS + 3 * BATCH  # a shard, and the batches on their way to it


def test_power_cut(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """What was not synced before the kill is cut, zeroed or gone: the same end, and no reader is misled."""
    kinds = one_of_each(like)
    files = ("pooled", "maps", "features.h5", "digests.h5", "folder")
    calls = [("after", "replace"), ("before", "fsync"), ("after", "fsync")]
    faults = [kinds[when, call, file] for when, call in calls for file in files if (when, call, file) in kinds]
    done = all_trials(nurseries, like, faults, tmp_path, cut=True)
    assert len(done) >= 12
    assert {one.kept for one in done} >= {0, 3 * ROWS}


def test_power_cut_after_the_end(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """When a run has ended, nothing of it hangs on the power any more."""
    for one in all_trials(nurseries, like, [Fault()] * 4, tmp_path, cut=True):
        assert one.answer["images"] == one.kept == one.seen == 3 * ROWS


def test_disk_full_from_some_moment_on(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """ENOSPC is raised, nothing half-written stays, and with room again the run goes on."""
    kinds = one_of_each(like)
    faults = [kinds["inside", "write", file] for file in ("pooled", "maps", "features.h5", "digests.h5")]
    for one in all_trials(nurseries, like, [f._replace(how="full") for f in faults], tmp_path):
        assert "No space left" in one.answer["error"], one
        assert not one.left, one


def test_file_size_limit(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """Where the maps do not fit, the pooled features that did are in the master nevertheless."""
    one = trial(nurseries[0], like, tmp_path / "a", Fault(), file_size=300_000)
    assert "File too large" in one.answer["error"]
    assert one.seen >= ROWS
    assert (one.kept, one.left) == (0, [])


@pytest.mark.parametrize("at", [1, 3, 6])
def test_exception_in_a_batch(at: int, nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """A fault of the network: the other batches on their way are committed, listed, and not computed again."""
    one = trial(nurseries[0], like, tmp_path / "a", Fault(at, how="network"))
    assert one.answer["error"] == "RuntimeError: a fault in the network"
    assert one.seen == one.kept
    assert one.kept in [BATCH * n for n in range(at - 1, at + 2)], "all before it, and at most two that were in hand"
    assert not one.left


def test_interrupted_from_the_keyboard(nurseries: list[Nursery], like: Undisturbed, tmp_path: Path) -> None:
    """Ctrl-C at some moments of the work: what is computed is committed and listed on the way out."""
    kinds = [fault for (_, _, file), fault in one_of_each(like).items() if file in ("pooled", "maps")]
    done = all_trials(nurseries, like, [fault._replace(how="interrupt") for fault in kinds[:8]], tmp_path)
    assert any(one.answer["error"].startswith("KeyboardInterrupt") for one in done)
    for one in done:
        assert one.answer["killed"] == 0
        assert one.seen == one.kept > 0
        assert not one.left


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 1 MB; skip where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of its own can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    """Change the options of a mounted disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def test_full_disk(nurseries: list[Nursery], like: Undisturbed, small_disk: Path) -> None:
    """A disk that is really full: an error, no left-overs, right rows; with room the run ends as ever."""
    answer, _ = nurseries[0].extract(like.data, small_disk / "a")
    assert "No space left" in answer["error"]
    assert not hidden(small_disk)
    only_right_rows(like.entry_in(small_disk / "a"), like.truth)
    remount(small_disk, "size=64m")
    assert nurseries[0].extract(like.data, small_disk / "a")[0]["error"] == ""
    now = everything(like.entry_in(small_disk / "a"))
    assert all(np.array_equal(x, y) for x, y in zip(now, like.truth, strict=True))


def test_read_only_disk(nurseries: list[Nursery], like: Undisturbed, small_disk: Path) -> None:
    """Readers read all that is there; a writer says why it cannot; nothing changes; then the run goes on."""
    remount(small_disk, "size=64m")
    stopped, _ = nurseries[0].extract(like.data, small_disk / "a", Fault(4, how="network"))
    assert stopped["error"]
    before = snapshot(small_disk)
    remount(small_disk, "ro")
    try:
        seen = only_right_rows(like.entry_in(small_disk / "a"), like.truth)
        assert seen >= 3 * BATCH
        assert "Read-only file system" in nurseries[0].extract(like.data, small_disk / "a")[0]["error"]
        assert snapshot(small_disk) == before
    finally:
        remount(small_disk, "rw")
    resume(nurseries[0], like, small_disk / "a", len(like.truth[2]) - seen)
