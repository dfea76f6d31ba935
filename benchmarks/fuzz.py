"""Do strangers' files do harm? Damaged images, manifests, archives, caches and weights, by the thousand.

Run: python -m benchmarks.fuzz [--inputs 24000] [--seed 0] [--only "PNG,DICOM"]

Every input is a sound file with a few changes (benchmarks/mutations.py) that an own process reads. It may be read or
refused with one of Firn's own errors; counted as faults are any other error or warning, the death of the process, more
than LIMIT seconds of processor time (or PATIENCE of the clock), and more than MEMORY bytes. A fault is printed with
what makes it again; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.mutations import mutated
from benchmarks.readers import READERS
from features.errors import FirnError

__all__ = ["Tally", "followed", "fuzz", "input_of", "outcome"]

LIMIT = 5.0  # seconds of processor time for one input: those of the clock tell how busy the machine is
PATIENCE = 30.0  # seconds of the clock for one input
START = 120.0  # seconds for a process to begin
MEMORY = 1_000_000_000  # bytes of the process at its peak
GUARD = 3_000_000_000  # bytes of address space beyond what the process has when it begins
SHOWN = 20  # faults of each reader
ROOT = Path(__file__).parents[1]


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: int = 0  # bytes
    faults: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Return how many inputs were tried."""
        return self.counts.total()

    def cells(self) -> list[str]:
        """Return the row of the table."""
        counts = [f"{self.counts[kind]:,}" for kind in ("read", "refused")]
        sizes = [f"{1000 * self.slowest:,.0f} ms", f"{self.peak / 1e6:,.0f} MB"]
        return [self.name, f"{self.inputs:,}", *counts, str(len(self.faults)), *sizes]


def fuzz(name: str, inputs: int, *, seed: int = 0) -> Tally:
    """Feed a reader of READERS; a process that dies or hangs is replaced and goes on with the next input."""
    tally, first = Tally(name), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while first < inputs:
            first = _watched(tally, first, inputs, seed, folder)
    return tally


def _watched(tally: Tally, first: int, last: int, seed: int, folder: str) -> int:
    """Run one process over inputs first..last; return the input after the last one that it tried."""
    words = [sys.executable, "-W", "error", "-m", "benchmarks.fuzz", "--child", tally.name, str(first), str(last)]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [*words, str(seed), folder],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "FIRN_ARTIFACTS": f"{folder}/artifacts", "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        at, why = followed(process.stdout.fileno(), tally, first - 1)
        process.kill()
        process.wait()
        if why:
            said.seek(0)
            end = said.read().decode(errors="replace").strip().splitlines()[-1:]
            tally.counts["fault"] += 1
            tally.faults.append(f"{tally.name} seed {seed} input {max(at, first)}: {why} {' '.join(end)[:200]}")
    return max(at, first) + 1


def followed(pipe: int, tally: Tally, at: int) -> tuple[int, str]:
    """Read what the process says until it ends; return its last input, and what was wrong with how it ended."""
    rest, patience = b"", START
    while True:
        ready, _, _ = select.select([pipe], [], [], patience)
        if not ready:
            return at, f"no answer in {patience:.0f} s"
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return at, "the process died"
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            word, *cells = line.decode().split("\t")
            patience = PATIENCE  # the process itself tells who took longer than LIMIT
            if word == "begin":
                at = int(cells[0])
            elif word == "end":
                return at, ""
            else:
                _counted(tally, word, *cells)


def _counted(tally: Tally, word: str, where: str, seconds: str, peak: str, detail: str) -> None:
    tally.slowest, tally.peak = max(tally.slowest, float(seconds)), max(tally.peak, int(peak))
    excess = [f"{float(seconds):.1f} s"] * (float(seconds) > LIMIT) + [f"{int(peak):,} bytes"] * (int(peak) > MEMORY)
    faulty = word == "fault" or excess
    tally.counts["fault" if faulty else word] += 1
    if faulty:
        tally.faults.append(f"{tally.name} {where}: {' '.join(excess)} {detail}")


def _child(name: str, first: int, last: int, seed: int, folder: Path) -> None:
    """Read inputs one after the other and say what became of each."""
    row = READERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they are loaded
        samples = row.samples(folder)
        read = row.reader(folder)
        for sample in samples:
            with contextlib.suppress(FirnError):
                read(sample)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = size + GUARD if hard == resource.RLIM_INFINITY else min(size + GUARD, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for i in range(first, last):
        data = input_of(name, i, seed, samples)
        print(f"begin\t{i}", flush=True)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, proc(5)
        start = time.process_time()
        word, detail = outcome(read, data)
        print(f"{word}\tseed {seed} input {i}\t{time.process_time() - start:.4f}\t{_peak()}\t{detail}", flush=True)
    print("end", flush=True)


def input_of(name: str, i: int, seed: int, samples: list[bytes]) -> bytes:
    """Return input `i` of a reader, the same for the same seed."""
    return mutated(np.random.default_rng([seed, zlib.crc32(name.encode()), i]), samples, READERS[name].repair)


def outcome(read: object, data: bytes) -> tuple[str, str]:
    try:
        assert callable(read)
        read(data)
    except FirnError:
        return "refused", ""
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return "fault", " ".join(f"{type(error).__name__}: {error} ({place})".split())[:300]
    return "read", ""


def _peak() -> int:
    """Return the peak of resident memory in bytes, since it was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> int:
    """Parse the options, feed every reader, print the table and the faults."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--inputs", type=int, default=24_000, help="in all, the same number for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers, separated by commas")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(READERS)
    tallies, start = [], time.perf_counter()
    for name in names:
        tallies.append(fuzz(name, -(-options.inputs // len(names)), seed=options.seed))
        print(f"{name}: {tallies[-1].faults[:3]} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    head = ["reader", "inputs", "read", "refused", "faults", "slowest", "memory"]
    print("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *(t.cells() for t in tallies))))
    print(f"{sum(t.inputs for t in tallies):,} inputs in {time.perf_counter() - start:,.0f} s, seed {options.seed}")
    print("\n".join(fault for tally in tallies for fault in tally.faults[:SHOWN]))
    return 1 if any(tally.faults for tally in tallies) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], *map(int, sys.argv[3:6]), Path(sys.argv[6]))
        sys.exit(0)
    sys.exit(main())
