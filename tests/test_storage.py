"""A file is absent or right, and what dead writers leave behind goes away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.storage import STALE_AFTER, remove_leftovers, remove_leftovers_of, slug, temporary_name, write_whole


def test_whole_file_or_none(tmp_path: Path) -> None:
    """Everything is written in order, and no temporary file stays."""
    write_whole(tmp_path / "a" / "x.bin", [b"one", memoryview(b"two")])
    assert (tmp_path / "a" / "x.bin").read_bytes() == b"onetwo"
    assert os.listdir(tmp_path / "a") == ["x.bin"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """When syncing or renaming fails the old content is still there and nothing else is."""
    path = tmp_path / "x.bin"
    write_whole(path, [b"old"])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"No space left.*x\.bin"):
        write_whole(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_existing_content_is_kept_without_replace(tmp_path: Path) -> None:
    """A file that is named by its content is not written over."""
    path = tmp_path / "x.bin"
    write_whole(path, [b"first"])
    write_whole(path, [b"second"], replace=False)
    assert path.read_bytes() == b"first"


def test_leftovers_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    """Own process: stays. Ended process: goes. Another host: goes when it gave no sign of life for long."""
    mine = temporary_name(tmp_path / "x.h5")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".x.h5~{socket.gethostname()}~{ended.pid}~1.tmp"
    other, silent = tmp_path / ".x.h5~elsewhere~1~1.tmp", tmp_path / ".x.h5~elsewhere~2~1.tmp"
    for path in (mine, dead, other, silent):
        path.touch()
    os.utime(silent, (time.time() - STALE_AFTER - 60,) * 2)
    assert set(remove_leftovers(tmp_path)) == {dead, silent}
    assert mine.exists()
    assert other.exists()


def test_slug() -> None:
    """Names become folder names."""
    assert slug("My X-rays (2019)/a") == "my-x-rays--2019--a"
    assert slug("../..") == "unnamed"
    assert slug("肺炎 2019") == "肺炎-2019"
    assert slug("Lésion ไทย") == slug("Le\u0301sion ไทย") == "lésion-ไทย"


ROOT = Path(__file__).parents[1]


def name_of_a_dead_process(target: Path) -> Path:
    program = (
        "import pathlib, sys; from features.storage import temporary_name; "
        "print(temporary_name(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(target)]
    return Path(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip())


def test_dead_files_and_folders_of_the_target_go_and_all_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "odd~[name]"
    folder, file = name_of_a_dead_process(target), name_of_a_dead_process(target)
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "p.png").touch()
    file.touch()
    kept = {temporary_name(target), name_of_a_dead_process(tmp_path / "other"), tmp_path / ".odd.tmp", target}
    for path in kept:
        path.touch()
    remove_leftovers_of(target)
    assert set(tmp_path.iterdir()) == kept


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers_of(tmp_path / "none" / "target")
