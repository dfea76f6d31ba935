"""Extractions that end badly on purpose, at a chosen system call, and what a power cut leaves of their files.

A nursery is a process that has torch loaded and forks one child per extraction, so that a death costs no import.
Run as a script it is the nursery: one order per line of standard input, one answer per line of standard output.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from conftest import SHARED, draw

from features.backbones import BackboneSpec, load_spec
from features.cache import Entry, Key
from features.cache.verify import verify
from features.errors import CacheError
from features.views import map_view, pooled_view

ROOT = Path(__file__).parents[1]
BATCH, ROWS, MAPS = 4, 8, "features.12"
NETWORK = "squeezenet1_1@128"  # on small images, for there are many trials
CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "flush")  # of os, and the last of h5py
Reading = tuple[np.ndarray, ...]


class Call(NamedTuple):
    """One of the counted calls of a run."""

    number: int
    name: str
    on: str  # the kind of file: "claim", "pooled", "maps", "features.h5", "digests.h5", "folder"; or ""


class Fault(NamedTuple):
    """What goes wrong, at which of the counted calls."""

    at: int = 0  # counted from 1; 0 for never; for "alarm" the milliseconds from the start
    when: str = "before"  # the call, "inside" (half of a write) or "after" it
    how: str = "kill"  # "interrupt" (Ctrl-C), "full" (disk, from then on), "network" (the at-th batch fails), "alarm"


NO_FAULT = Fault()


def images(folder: Path) -> Path:
    """Put 24 images of two classes into `folder`: real X-rays where there are any, else drawn ones."""
    source = SHARED / "data" / "pneumonia"
    if not source.is_dir():
        return draw(folder, per_class=9, test=3)
    for split, count in (("train", 9), ("test", 3)):
        for label in ("NORMAL", "PNEUMONIA"):
            (folder / split / label).mkdir(parents=True)
            for path in sorted((source / split / label).iterdir())[:count]:
                shutil.copyfile(path, folder / split / label / path.name)
    return folder


# The child -----------------------------------------------------------------------------------------------------------


@cache
def network() -> BackboneSpec:
    """Return the network of all trials; a nursery knows it before it forks."""
    return load_spec(NETWORK)


class _Saboteur:
    """Counts and journals the calls that touch the disk, and strikes at one of them."""

    def __init__(self, fault: Fault, journal: Path) -> None:
        self._fault, self._count, self._full = fault, itertools.count(1), False
        self._spare = journal.with_suffix(".spare")
        self._spare.mkdir(exist_ok=True)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._real_write = os.write

    def note(self, *words: object) -> None:
        """Append one line to the journal; it outlives the child."""
        self._real_write(self._journal, (json.dumps(words) + "\n").encode())

    def strike(self) -> None:
        """Do what the fault says."""
        if self._fault.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault.how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        self._full = self._fault.how == "full"

    def patched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return `real` with counting, journal and fault."""

        def call(*args: Any, **kwargs: Any) -> Any:
            number = next(self._count)
            struck = number == self._fault.at and self._fault.how not in ("network", "alarm")
            if struck and self._fault.when == "inside":
                args = (args[0], args[1][: len(args[1]) // 2])
                real(*args)
            if struck and self._fault.when != "after":
                self.strike()
            if struck and self._fault.when == "inside" and not self._full:
                return len(args[1])
            if self._full and name in ("write", "fsync", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            words = self._words(name, args)
            result = real(*args, **kwargs)
            self.note(number, name, *words)
            if struck and self._fault.when == "after":
                self.strike()
            return result

        return call

    def _words(self, name: str, args: tuple[Any, ...]) -> list[object]:
        """Return what a power cut has to know of a call: what was synced, and what a rename replaced."""
        if name in ("fsync", "write"):
            return [os.fstat(args[0]).st_ino, str(Path(f"/proc/self/fd/{args[0]}").readlink())]
        if name == "replace":
            spare = self._spare / str(len(os.listdir(self._spare)))
            with contextlib.suppress(OSError):  # nothing there yet, or another disk, whose power is not cut
                os.link(args[1], spare)
            return [str(args[0]), str(args[1]), str(spare)]
        return [str(args[0])] * 2 if name in ("mkdir", "unlink", "open") else []


def _extract(order: Mapping[str, Any]) -> dict[str, Any]:
    """Run one extraction as ordered, under sabotage; return what it did."""
    import h5py

    from features.cache import open_entry
    from features.datasets import load_dataset
    from features.extraction import shard_writer as writer
    from features.extraction.forward import Forward
    from features.extraction.job import Job
    from features.extraction.loop import extract

    writer._BEHIND = 0  # as for maps that fill the memory: so few images tell what a kill costs
    fault = Fault(*order["fault"])
    if fault.how == "alarm":
        signal.setitimer(signal.ITIMER_REAL, fault.at / 1000)  # not handled, so it ends the process as SIGKILL does
    if order["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"],) * 2)
    spec = network()
    dataset = load_dataset(order["images"])
    entry = open_entry(dataset.name, spec.key(preprocess="squash", precision="float32"))
    saboteur = _Saboteur(fault, Path(order["journal"]))
    for name in CALLS[:-1]:
        setattr(os, name, saboteur.patched(name, getattr(os, name)))
    h5py.File.flush = saboteur.patched("flush", h5py.File.flush)
    batches, forward = itertools.count(1), Forward._run

    def failing(self: Forward, pixels: np.ndarray) -> Any:
        if fault.how == "network" and next(batches) == fault.at:
            raise RuntimeError("a fault in the network")
        return forward(self, pixels)

    Forward._run = failing  # type: ignore[method-assign]
    done = extract(
        dataset,
        [Job(entry, spec, "squash", (MAPS,))],
        batch_size=BATCH,
        shard_rows=ROWS,
        workers=2,
        progress=lambda done, total: saboteur.note(0, "progress", done),
    )
    return {"images": done.images, "key": entry.key.to_json(), "folder": str(entry.folder)}


def _child(order: Mapping[str, Any]) -> None:
    """Do an order in a process of its own and leave the answer in a file."""
    os.environ["FIRN_ARTIFACTS"] = order["artifacts"]
    answer, descriptor = {}, os.open(order["answer"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write = os.write
    try:
        answer = _extract(order)
    except BaseException as error:  # the test wants to know, whatever it is
        answer = {"error": f"{type(error).__name__}: {error}"}
    write(descriptor, json.dumps(answer).encode())
    os._exit(0)


def _nursery() -> None:
    """Answer orders until standard input ends."""
    import torch

    import features.datasets
    import features.extraction.loop  # noqa: F401

    torch.set_num_threads(1)  # no threads before the fork; and the same sums in every child
    network()
    for line in sys.stdin:
        order = json.loads(line)
        if not (child := os.fork()):
            _child(order)
        _, status = os.waitpid(child, 0)
        answer = json.loads(Path(order["answer"]).read_text() or "{}")
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        sys.stdout.write(json.dumps({"killed": killed, "error": "", "images": -1} | answer) + "\n")
        sys.stdout.flush()


# The test's side -----------------------------------------------------------------------------------------------------


class Nursery:
    """A process that bears one child per extraction, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._number = folder, threading.Lock(), itertools.count()
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def extract(
        self, data: Path, artifacts: Path, fault: Fault = NO_FAULT, *, file_size: int = 0
    ) -> tuple[dict[str, Any], Path]:
        """Extract `data` into `artifacts`; return the child's answer and its journal."""
        number = next(self._number)
        journal = self._folder / f"{number}.journal"
        journal.touch()
        order = {
            "images": str(data),
            "artifacts": str(artifacts),
            "fault": list(fault),
            "file_size": file_size,
            "journal": str(journal),
            "answer": str(self._folder / f"{number}.answer"),
        }
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer, journal

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def calls(journal: Path) -> list[Call]:
    """Return every call in a journal."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [Call(line[0], line[1], _kind(Path(line[3]) if len(line) > 3 else None)) for line in lines if line[0]]


def _kind(path: Path | None) -> str:
    """Say in a word what a path is."""
    if path is None:
        return ""
    words = ("claim", "pooled", "maps", "features.h5", "digests.h5")
    return next((word for word in words if word in path.name), "folder")


def moments(run: list[Call]) -> dict[tuple[str, str, str], list[Fault]]:
    """Return every kill that an undisturbed run suggests, by (when, call, kind of file).

    Before every call, inside the writes, and after opening (a lease without text), renaming and syncing.
    """
    found: dict[tuple[str, str, str], list[Fault]] = {}
    for call in run:
        inside, after = call.name == "write", call.name in ("open", "replace", "fsync")
        for when in ["before", *["inside"] * inside, *["after"] * after]:
            found.setdefault((when, call.name, call.on), []).append(Fault(call.number, when))
    return found


def cut_power(root: Path, journal: Path, rng: np.random.Generator) -> None:
    """Leave below `root` what a disk may hold after a power cut at the end of a journal.

    Content that was not synced is cut, zeroed or there; renames and new folders whose parent was not synced may be
    undone. A hard case on purpose: real file systems keep more.
    """
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    synced = {line[2] for line in lines if line[1] == "fsync"}
    for i, line in reversed(list(enumerate(lines))):
        later = {other[2] for other in lines[i:] if other[1] == "fsync"}
        if line[1] == "replace" and rng.random() < 0.7:
            _undo_rename(*(Path(p) for p in line[2:5]), later)
        if line[1] == "mkdir" and Path(line[2]).is_dir() and Path(line[2]).parent.stat().st_ino not in later:
            shutil.rmtree(line[2])
    for path in [p for p in root.rglob("*") if p.is_file()]:
        if path.stat().st_ino not in synced and (fate := int(rng.integers(3))) < 2:
            size = path.stat().st_size
            path.write_bytes(b"\0" * size if fate else path.read_bytes()[: size // 2])


def _undo_rename(source: Path, target: Path, spare: Path, synced: set[int]) -> None:
    """Take a rename back whose folder was not synced afterwards."""
    if target.exists() and target.parent.stat().st_ino not in synced:
        target.rename(source)
        if spare.exists():
            spare.rename(target)


def everything(entry: Entry) -> Reading:
    """Return all that readers see of an entry: pooled features of all blocks, maps, and the manifest."""
    view = pooled_view(entry, list(entry.key.blocks), "both")
    manifest = entry.manifest()
    assert manifest is not None
    return (*view, map_view(entry, MAPS).X, manifest.ids, manifest.sha256, manifest.labels)


def only_right_rows(entry: Entry, truth: Reading) -> int:
    """Read as a trainer would; return the rows seen (0 for CacheError) after comparing each with the truth."""
    try:
        view = pooled_view(entry, list(entry.key.blocks), "both")
    except CacheError:
        return 0
    at = np.searchsorted(truth[2], view.ids)
    for seen, wanted in zip(view, truth[:5], strict=True):
        assert np.array_equal(seen, wanted[at])
    return len(view.ids)


def snapshot(root: Path) -> list[tuple[str, int, int]]:
    """Return every file with size and time."""
    stats = [(str(p), p.stat()) for p in sorted(root.rglob("*"))]
    return [(p, s.st_size, s.st_mtime_ns) for p, s in stats if not Path(p).is_dir()]


def hidden(root: Path) -> list[Path]:
    """Return temporary files and leases."""
    return [p for p in root.rglob(".*") if p.is_file()]


def committed(entry: Entry) -> int:
    """Return how many images have rows in every part."""
    return len(np.intersect1d(entry.scan("pooled")[0], entry.scan(f"maps/{MAPS}")[0]))


class Trial(NamedTuple):
    """One death and what came of it."""

    fault: Fault
    answer: Mapping[str, Any]  # of the child that met the fault; "killed" is the signal that ended it
    left: list[Path]  # temporary files and leases between death and resumption
    seen: int  # rows that a reader saw between death and resumption
    kept: int  # images with all their rows on the disk
    lost: int  # images that had gone into the network and were not on the disk


class Undisturbed(NamedTuple):
    """What an extraction without a fault gave: what every other one must come to in the end."""

    data: Path
    entry: Entry
    truth: Reading
    calls: list[Call]

    def entry_in(self, artifacts: Path) -> Entry:
        """Return the same entry in other artifacts."""
        return Entry(artifacts / "cache" / self.entry.folder.parent.name / self.entry.folder.name, self.entry.key)


def undisturbed(nursery: Nursery, data: Path, artifacts: Path) -> Undisturbed:
    """Extract without a fault."""
    answer, journal = nursery.extract(data, artifacts)
    assert not answer["error"], answer
    entry = Entry(Path(answer["folder"]), Key.from_json(answer["key"]))
    return Undisturbed(data, entry, everything(entry), calls(journal))


def trial(
    nursery: Nursery, like: Undisturbed, artifacts: Path, fault: Fault, *, cut: int | None = None, file_size: int = 0
) -> Trial:
    """Let one extraction meet a fault (and cut the power with seed `cut`), read, resume, compare with the truth."""
    answer, journal = nursery.extract(like.data, artifacts, fault, file_size=file_size)
    if cut is not None:
        cut_power(artifacts, journal, np.random.default_rng(cut))
    entry, before = like.entry_in(artifacts), snapshot(artifacts)
    seen, kept = only_right_rows(entry, like.truth), committed(entry)
    assert snapshot(artifacts) == before, "a reader changed something"
    progress = [line[2] for line in map(json.loads, journal.read_text().splitlines()) if line[1] == "progress"]
    left = hidden(artifacts)
    resume(nursery, like, artifacts, len(like.truth[2]) - kept)
    return Trial(fault, answer, left, seen, kept, max([0, *progress]) - kept)


def resume(nursery: Nursery, like: Undisturbed, artifacts: Path, missing: int) -> None:
    """Extract what is missing, so many images, and compare all with the truth."""
    answer, _ = nursery.extract(like.data, artifacts)
    assert (answer["error"], answer["images"]) == ("", missing)
    entry = like.entry_in(artifacts)
    assert all(np.array_equal(now, wanted) for now, wanted in zip(everything(entry), like.truth, strict=True))
    assert not hidden(artifacts)
    assert verify(entry) == []


if __name__ == "__main__":
    _nursery()
