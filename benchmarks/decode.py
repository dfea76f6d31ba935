"""How fast encoded images become squares, against the bare decoder: one thread, then several.

Run: FIRN_DATA=... python -m benchmarks.decode [--images 200] [--rounds 15]

One thread: microseconds of processor time per image, Firn's and the bare decoder's in turn, medians. What Firn takes
where its calls of C do nothing is the time under the interpreter's lock, which bounds a process. Threads: images per
second of the clock, and how many times those of one thread. To 224 x 224 (squash), files in memory. Processes: from
files to pixels by as many threads that read and decode, and by as many processes, in turn; and what an image takes of
this process's own processor time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import simplejpeg

from features.datasets.listing import FileSource
from features.extraction.prefetch import prepare
from features.extraction.processes import DecodingProcesses
from features.images import Geometry, pixels
from features.storage import data_root

SETS = {
    "224 x 224 JPEG, three equal channels": ("pneumonia/train", "*.jp*g", 224),
    "224 x 224 JPEG, colour": ("colon/train", "*.jp*g", 224),
    "64 x 64 PNG, grey": ("nih14/images", "*.png", 64),
    "full-size JPEG, grey, to 224": ("radiographs_fullsize", "*.jp*g", 224),
}
WAY = (Geometry("squash", 224, 256, "bilinear"),)
Work = Callable[[bytes], object]


def bare(data: bytes) -> object:
    """Decode in colour by OpenCV, and do nothing else."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def some_files(folder: Path, pattern: str, count: int) -> list[bytes]:
    """Return up to `count` files of a folder, evenly chosen."""
    paths = sorted(folder.rglob(pattern))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def alone(files: list[bytes], work: Work) -> float:
    """Return the microseconds of processor time per file in this thread."""
    start = time.thread_time()
    for data in files:
        work(data)
    return (time.thread_time() - start) / len(files) * 1e6


def rate(files: list[bytes], work: Work, threads: int) -> float:
    """Return files per second of the clock with so many threads, each of which does all files."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(time.sleep, [0.01] * threads))  # all have begun
        start = time.perf_counter()
        list(pool.map(lambda _: alone(files, work), range(threads)))
    return threads * len(files) / (time.perf_counter() - start)


def one_thread(files: dict[str, list[bytes]], rounds: int) -> None:
    """Print what Firn takes beyond the bare decoder."""
    print("\n| one thread | Firn, µs | OpenCV, µs | rate of Firn to OpenCV | beyond OpenCV, µs |\n" + "|---" * 5 + "|")
    for name, some in files.items():
        work = partial(pixels, geometry=Geometry("squash", SETS[name][2], 256, "bilinear"), name=name)
        found = np.array([[alone(some, work), alone(some, bare)] for _ in range(rounds)])
        ours, theirs = np.median(found, axis=0)
        ratio, beyond = np.median(found[:, 1] / found[:, 0]), np.median(found[:, 0] - found[:, 1])
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} | {beyond:,.0f} |", flush=True)


def under_lock(files: list[bytes], rounds: int) -> None:
    """Print how long a JPEG of three equal channels holds the lock."""
    work = partial(pixels, geometry=WAY[0], name="image")
    whole = np.median([alone(files, work) for _ in range(rounds)])
    image = simplejpeg.decode_jpeg(files[0], "RGB")
    with (
        patch.object(simplejpeg, "decode_jpeg", lambda *_: image),
        patch.object(cv2, "split", lambda *_: None),
        patch.object(cv2, "norm", lambda *_: 0.0),
    ):
        held = np.median([alone(files, work) for _ in range(rounds)])
    print(f"\nunder the lock: {held:.0f} of {whole:.0f} µs ({held / whole:.0%}), at most {1e6 / held:,.0f} images/s")


def several_threads(files: list[bytes], rounds: int) -> None:
    """Print the rates of 1, 2, 4, ... threads up to the cores."""
    most = os.cpu_count() or 1
    counts = sorted({2**i for i in range(most.bit_length())} | {most})
    works = {"Firn": partial(pixels, geometry=WAY[0], name="image"), "OpenCV": bare}
    print(f"\n| images/s with threads | {' | '.join(map(str, counts))} | times one |")
    print("|---" * (len(counts) + 2) + "|")
    for name, work in works.items():
        found = np.array([[rate(files, work, threads) for threads in counts] for _ in range(rounds)])
        cells = " | ".join(f"{value:,.0f}" for value in np.median(found, axis=0))
        print(f"| {name} | {cells} | {np.median(found[:, -1] / found[:, 0]):.2f} |", flush=True)


def by_threads(source: FileSource, ids: list[str], count: int) -> int:
    """Return how many images threads read and decoded."""
    way: dict[str, Any] = {"wanted": lambda sha256: True, "workers": count, "ahead": 1024}
    return sum(not prepared.error for prepared in prepare(source, ids, range(len(ids)), WAY, **way))


def by_processes(processes: DecodingProcesses, ids: list[str]) -> int:
    """Return how many images processes that have begun read and decoded."""
    return sum(not p.error for p in processes.prepare(ids, range(len(ids)), ahead=1024))


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Return images per second of the clock, and microseconds of this process's processor time for each."""
    start, used = time.perf_counter(), time.process_time()
    images = work()
    return images / (time.perf_counter() - start), (time.process_time() - used) / images * 1e6


def several_processes(folder: Path, pattern: str, images: int, rounds: int) -> None:
    """Print the rates of 1, 2, 4, ... processes beside those of threads."""
    paths = sorted(folder.rglob(pattern))[:images]
    source, ids = FileSource(folder), [path.relative_to(folder).as_posix() for path in paths]
    most = os.cpu_count() or 1
    print(
        "\n| count | threads, images/s | processes, images/s | threads, own µs | processes, own µs |\n"
        + "|---" * 5
        + "|"
    )
    for count in sorted({2**i for i in range(most.bit_length())} | {most}):
        processes = DecodingProcesses(source, WAY, count)
        by_processes(processes, ids)  # all have begun
        both = partial(by_threads, source, ids, count), partial(by_processes, processes, ids)
        found = np.median([[timed(work) for work in both] for _ in range(rounds)], axis=0)
        processes.close()
        rates, own = (" | ".join(f"{value:,.0f}" for value in row) for row in found.T)
        print(f"| {count} | {rates} | {own} |", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    files = {name: some_files(data_root() / where, glob, asked.images) for name, (where, glob, _) in SETS.items()}
    files = {name: some for name, some in files.items() if some}
    print(f"{os.cpu_count()} cores, load at the start {os.getloadavg()[0]:.1f}")
    one_thread(files, asked.rounds)
    first = next(iter(files.values()))
    under_lock(first, asked.rounds)
    several_threads(first, asked.rounds)
    where, glob, _ = SETS[next(iter(files))]
    several_processes(data_root() / where, glob, 10 * asked.images, asked.rounds)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
