"""Extraction on Ray: ranges of images, a task for each, on all GPUs or cores of a machine or of a cluster.

A task leases its partitions and commits immutable shards into the entries as any writer does; all machines see one file
system. When a worker dies Ray gives its range to another one, which goes on after the last shard that was
committed. The masters are written here, once, from the shards that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.cache.content import Digests
from features.datasets.dataset import Dataset
from features.devices import checked
from features.errors import BadImage, FirnError
from features.extraction.job import Job, Outcome, Settings, add, rows_per_shard
from features.extraction.loop import RangeResult, extract_range
from features.extraction.shard_writer import refresh, remembered, settle
from features.ray_cluster import Home, cluster, load_ray, results

_RANGES_PER_SLOT = 4  # ranges per worker that runs at a time: the slower ones get fewer
_CORES = 4  # per worker, where nobody says otherwise


def extract_on_ray(
    dataset: Dataset,
    jobs: list[Job],
    *,
    device: str = "cpu",
    batch_size: int = 32,
    workers: int = 0,
    strict: bool = False,
    shard_rows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Do what `extract` does, on Ray: the cluster at $RAY_ADDRESS, else one on this machine for as long as it takes.

    `workers` is the number of cores of one worker, 0 chooses. Raises FirnError where Ray is not installed, has no GPU
    although `device` is one, or a range cost its worker's life again and again; what `extract` raises besides.
    """
    ray = load_ray()
    start, clock, digests = time.perf_counter(), time.time_ns(), remembered(dataset)
    rows, known = shard_rows or rows_per_shard(len(dataset), jobs), digests.known()
    with cluster(ray) as resources:
        cores, slots = worker_slots(resources, device, workers)
        settings = Settings(device.partition(":")[0], batch_size, cores, strict, rows, len(dataset))
        todo = ranges(_lacking(digests, jobs), rows, slots * _RANGES_PER_SLOT)
        parts: list[RangeResult] = []
        done = len(dataset) - sum(stop - first for first, stop in todo)
        orders = [(_images(dataset, *pair), jobs, settings, pair[0] // rows, Home.here()) for pair in todo]
        for i, part in results(ray, _work, orders, cores=cores, gpus=int(settings.device != "cpu")):
            first, stop = todo[i]
            digests.sha256[first:stop] = part.sha256
            parts.append(part)
            done += stop - first
            progress(done, len(dataset))
    left_out = [{s: r for part in parts for s, r in part.left_out[i].items()} for i in range(len(jobs))]
    outcome = _sum([part.outcome for part in parts], time.perf_counter() - start, slots)
    if outcome.left_out and not outcome.images and not outcome.skipped and not known.any():
        raise BadImage(f"no image could be read; the first: {next(iter(outcome.left_out.values()))}")
    clock = settle(dataset, digests, clock)
    refresh(dataset, digests, clock, lambda: [(j.entry, o) for j, o in zip(jobs, left_out, strict=True)])
    return outcome


def worker_slots(resources: Mapping[str, float], device: str, workers: int) -> tuple[int, int]:
    """Return the cores of one worker, and how many workers run at a time: one per GPU, else as the cores allow."""
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if not device.startswith("cuda"):
        cores = min(workers or _CORES, cpus)
        return cores, max(1, cpus // cores)
    if not gpus:
        raise FirnError("this Ray has no GPU; run again with DEVICE=cpu, or set RAY_ADDRESS to a cluster that has some")
    return max(1, min(workers or cpus, cpus // gpus)), gpus


def _lacking(digests: Digests, jobs: list[Job]) -> NDArray[np.bool_]:
    """Return which images are unknown or have no row in some part of some entry, (n,)."""
    lacking = ~digests.known()
    for job in jobs:
        job.entry.clean()
        for part in job.parts:
            lacking |= ~np.isin(digests.sha256, job.entry.scan(part)[0])
    return lacking


def ranges(lacking: NDArray[np.bool_], rows: int, most: int) -> list[tuple[int, int]]:
    """Return [first, stop) of ranges of whole partitions of `rows` images, of those alone in which some are lacking."""
    partitions = -(-len(lacking) // rows)
    bounds = np.unique(np.linspace(0, partitions, min(partitions, most) + 1).astype(int)) * rows
    pairs = zip(bounds[:-1].tolist(), np.minimum(bounds[1:], len(lacking)).tolist(), strict=True)
    return [(first, stop) for first, stop in pairs if lacking[first:stop].any()]


def _images(dataset: Dataset, first: int, stop: int) -> Dataset:
    """Return some images of a data set, in their order."""
    columns = {name: getattr(dataset, name)[first:stop] for name in ("ids", "labels", "splits", "groups")}
    return replace(dataset, **columns)


def _work(dataset: Dataset, jobs: list[Job], settings: Settings, first: int, home: Home) -> RangeResult:
    """Do one range; runs in a process of Ray's."""
    import torch

    home.enter()
    checked(settings.device)
    torch.set_num_threads(settings.workers)
    return extract_range(dataset, jobs, settings, first)


def _sum(outcomes: list[Outcome], wall: float, slots: int) -> Outcome:
    """Return the outcome of all tasks together; seconds are those of all workers."""
    total = Outcome(processes=slots)
    for one in outcomes:
        total.threads, total.shared = one.threads, one.shared
        total.images += one.images
        total.skipped += one.skipped
        total.left_out |= one.left_out
        add(total.seconds, one.seconds)
        add(total.waits, one.waits)
        total.gpu += one.gpu
    total.seconds["wall"] = wall
    return total
