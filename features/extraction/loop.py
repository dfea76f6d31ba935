"""The extraction loop: every image is read and decoded once and goes to the writers of all entries that lack it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.datasets.dataset import Dataset
from features.devices import gpu_utilisation
from features.errors import BadImage
from features.extraction.cuda_graph import compiling_pays
from features.extraction.forward import Forward
from features.extraction.job import Job, Outcome, Settings, add, rows_per_shard
from features.extraction.prefetch import Prepared, prepare
from features.extraction.processes import DecodingProcesses, pays
from features.extraction.shard_writer import ShardWriter, refresh, remembered, settle
from features.extraction.workers import WorkerPool
from features.images import Geometry

_REFRESH_EVERY = 60.0  # seconds between masters while a long run goes on, for readers that do not wait
_LOOK_EVERY = 0.5  # seconds between looks at the GPU's utilisation
_POLL = 0.5  # seconds between looks at what other processes are doing


def extract(
    dataset: Dataset,
    jobs: list[Job],
    *,
    device: str = "cpu",
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    shard_rows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Fill the entries of `jobs` with every image of `dataset` that they lack, and write their masters.

    May be interrupted at any moment: what was committed stays, what was computed is committed on the way out, and the
    next call goes on from there. Raises BadImage for the first unreadable image with `strict`, or where none is
    readable; OSError (disk full) after the masters say what is there.
    """
    rows = shard_rows or rows_per_shard(len(dataset), jobs)
    run = _Run(dataset, jobs, Settings(device, batch_size, workers, strict, rows, len(dataset)), progress)
    run.whole()
    return run.outcome


class RangeResult(NamedTuple):
    """What came of a range of the images of a data set."""

    sha256: NDArray[np.bytes_]  # (m,) of its images, UNKNOWN where one could not be read
    left_out: list[dict[str, str]]  # for each job: sha256 -> why it is unreadable
    outcome: Outcome


def extract_range(dataset: Dataset, jobs: list[Job], settings: Settings, first: int) -> RangeResult:
    """Commit the shards of a range of images that begins with partition `first`; `dataset` has these images alone.

    No master is written: that is for whoever knows all ranges.
    """
    run = _Run(dataset, jobs, settings, lambda done, total: None, first, masters=False)
    run.whole()
    return RangeResult(run.digests.sha256, run.left_out, run.outcome)


def _network(job: Job, settings: Settings) -> Forward:
    """Return the network of a job."""
    key, compiled = job.entry.key, compiling_pays(settings.device, settings.images)
    return Forward(
        job.spec,
        maps=job.maps,
        device=settings.device,
        precision=key.precision,
        stored=key.stored,
        batch_size=settings.batch_size,
        compiled=compiled,
    )


class _Run:
    """The state of one call of `extract`."""

    def __init__(
        self,
        dataset: Dataset,
        jobs: list[Job],
        settings: Settings,
        progress: Callable[[int, int], None],
        first: int = 0,
        *,
        masters: bool = True,
    ) -> None:
        """Take the images to do, from partition `first` on, and whether the masters are to be written."""
        self._settings, self._first, self._masters = settings, first, masters
        self.outcome, self._dataset, self._progress = Outcome(), dataset, progress
        self._started = self._refreshed = self._looked = time.perf_counter()
        self._clock = time.time_ns()
        self.digests = remembered(dataset)
        geometries = [job.spec.geometry(job.preprocess) for job in jobs]
        self._geometries: tuple[Geometry, ...] = tuple(dict.fromkeys(geometries))
        self.left_out: list[dict[str, str]] = []
        self._writers: list[ShardWriter] = []
        self._pool = WorkerPool(settings.device)
        for job, geometry in zip(jobs, geometries, strict=True):
            job.entry.clean()
            self._writers.append(
                ShardWriter(job, _network(job, settings), self._geometries.index(geometry), self._pool)
            )
            manifest = job.entry.manifest()
            self.left_out.append(dict(manifest.left_out) if manifest else {})
        self._active: dict[int, list[ShardWriter]] = {}  # partition -> writers that leased it
        self._open: int | None = None  # the partition whose images are coming in
        self._processes: DecodingProcesses | None = None  # that decode, where it pays

    def whole(self) -> None:
        """Work through all partitions and come to an end, in good order whatever happens."""
        pool, workers = self._pool, self._settings.workers
        self.outcome.threads = {
            "read": workers,
            "decode": pool.size if pool.decoders else workers,
            "forward": pool.size,
            "write": len(self._writers),
        }
        self.outcome.shared = pool.decoders is not None
        try:
            self._go()
            self._finish(over=True)
        except BaseException:
            self._finish(over=False)
            raise

    def _go(self) -> None:
        """Work through all partitions; those of other living processes are waited for, and taken over if these die."""
        rows = self._settings.rows
        waiting = list(range(self._first, self._first - (-len(self._dataset) // rows)))
        lacking = sum(len(self._todo(partition)) for partition in waiting)
        self._done = len(self._dataset) - lacking
        self._begin_processes(lacking)
        while waiting:
            later: list[int] = []
            asked = time.perf_counter()
            for prepared in self._prepared(self._indices(waiting, later)):
                self.outcome.waits["decode"] += time.perf_counter() - asked
                self._take(prepared)
                asked = time.perf_counter()
            self._end_partition()
            for writer in self._writers:
                writer.flush()
            if later == waiting:
                time.sleep(_POLL)
            waiting = later

    def _begin_processes(self, lacking: int) -> None:
        """Have processes decode, where that pays for images that lack a row; some may only have to be read again."""
        held = min(writer.rows for writer in self._writers)
        known = len(self._dataset) - lacking  # to have their rows; other rows are of images to be read again
        settings, source = self._settings, self._dataset.source
        if pays(settings.device, settings.workers, source, lacking - max(0, held - known)):
            self._processes = DecodingProcesses(source, self._geometries, settings.workers)

    def _prepared(self, indices: Iterator[int]) -> Iterator[Prepared]:
        """Yield images of the data set, decoded a little ahead."""
        workers = self._settings.workers
        ahead = 2 * max(writer.batch_size for writer in self._writers) + 8 * workers
        if self._processes:
            return self._processes.prepare(self._dataset.ids, indices, ahead=ahead)
        return prepare(
            self._dataset.source,
            self._dataset.ids,
            indices,
            self._geometries,
            wanted=lambda sha256: bool(self._lacking(sha256)),
            workers=workers,
            ahead=ahead,
            decoders=self._pool.decoders,
        )

    def _indices(self, partitions: list[int], later: list[int]) -> Iterator[int]:
        """Yield the images to do, leasing one partition after the other; those leased by others go into `later`."""
        for partition in partitions:
            todo = self._todo(partition)
            if not todo:
                continue
            leasing = [writer for writer in self._writers if writer.leases.acquire(partition)]
            for writer in leasing:
                writer.rescan()
            todo = self._todo(partition)
            if todo and leasing:
                self._active[partition] = leasing
                yield from todo
            else:
                for writer in leasing:
                    writer.leases.release(partition)
            if todo and len(leasing) < len(self._writers):
                for writer in self._writers:
                    writer.rescan()
                later.append(partition)

    def _todo(self, partition: int) -> list[int]:
        """Return the images of a partition that are unknown or lack a row somewhere."""
        start = (partition - self._first) * self._settings.rows
        digests = self.digests.sha256[start : start + self._settings.rows].tolist()
        return [start + i for i, sha256 in enumerate(digests) if not sha256 or self._lacking(sha256)]

    def _lacking(self, sha256: bytes) -> list[ShardWriter]:
        """Return the writers in which an image has no row and is not known to be unreadable."""
        name = sha256.decode()
        pairs = zip(self._writers, self.left_out, strict=True)
        return [writer for writer, left_out in pairs if name not in left_out and writer.lacks(sha256)]

    def _take(self, prepared: Prepared) -> None:
        """Send one prepared image into the writers that need it."""
        partition = self._first + prepared.image // self._settings.rows
        if partition != self._open:
            self._end_partition()
            self._open = partition
        add(self.outcome.seconds, {"read": prepared.reading, "decode": prepared.decoding})
        self.outcome.waits["read"] += prepared.waiting
        self.digests.sha256[prepared.image] = prepared.sha256
        if prepared.error:
            self._leave_out(prepared)
        active = self._active.get(partition, []) if prepared.pixels else []
        writers = [writer for writer in active if writer.lacks(prepared.sha256)]
        for writer in writers:
            writer.add(partition, prepared.sha256, prepared.pixels[writer.geometry])
        self.outcome.images += bool(writers)
        self.outcome.skipped += not writers and not prepared.error
        if time.perf_counter() > self._looked + _LOOK_EVERY:
            self._looked = time.perf_counter()
            self.outcome.gpu += gpu_utilisation(self._settings.device)
        self._done += 1
        self._progress(self._done, len(self._dataset))

    def _end_partition(self) -> None:
        """Close the partition that was open and, now and then, bring the masters up to date."""
        if self._open is not None:
            for writer in self._active.pop(self._open, []):
                writer.end(self._open)
        self._open = None
        if time.perf_counter() - self._refreshed > _REFRESH_EVERY:
            self._refresh(over=False)

    def _leave_out(self, prepared: Prepared) -> None:
        """Remember an unreadable image by its content, so that it is not tried again until it changes."""
        if self._settings.strict:
            raise BadImage(f"{prepared.error}; mend or remove the file, or run without --strict to leave it out")
        self.outcome.left_out[self._dataset.ids[prepared.image]] = prepared.error
        for left_out in self.left_out:
            if prepared.sha256:
                left_out[prepared.sha256.decode()] = prepared.error

    def _name_left_out(self) -> None:
        """Name the images whose bytes an earlier run could not decode beside those of this run."""
        if known := self.left_out[0]:
            named = zip(self._dataset.ids, self.digests.sha256.tolist(), strict=True)
            self.outcome.left_out |= {i: known[s.decode()] for i, s in named if s.decode() in known}

    def _refresh(self, *, over: bool) -> None:
        """Bring memo and masters up to date, one process at a time.

        Until the run is over, a master that lists images whose bytes are still unknown here is left alone: it was
        written by somebody who knew more, and no image shall be taken out of the view by an unfinished run.
        """
        if self._masters:
            refresh(self._dataset, self.digests, self._clock, lambda: self._behind(over))
        self._refreshed = time.perf_counter()

    def _behind(self, over: bool) -> Iterator[tuple[Entry, dict[str, str]]]:
        """Yield the entries whose masters are to be written, and what could not be read."""
        known = self.digests.known()
        listed, unknown = self.digests.sha256[known].tolist(), self.digests.ids[~known]
        for writer, left_out in zip(self._writers, self.left_out, strict=True):
            if over or (writer.holds_any(listed) and not writer.entry.lists(unknown)):
                yield writer.entry, left_out

    def _finish(self, *, over: bool) -> None:
        """Commit what is computed and write the masters, whatever fails on the way.

        Raises the first error where the run was `over`; else the one that ended it is the one to tell.
        """
        errors: list[Exception] = []
        for writer in self._writers:
            with _kept(errors):
                writer.close()
            add(self.outcome.seconds, writer.seconds)
            add(self.outcome.waits, writer.waits)
        self._pool.close()
        if self._processes:
            self._processes.close()
        with _kept(errors):
            nothing = self.outcome.left_out and not self.outcome.images and not self.outcome.skipped
            if nothing and self._masters:
                raise BadImage(f"no image could be read; the first: {next(iter(self.outcome.left_out.values()))}")
            self._name_left_out()
            if over and not errors and self._masters:
                self._clock = settle(self._dataset, self.digests, self._clock)
            self._refresh(over=over and not errors)
        self.outcome.seconds["wall"] = time.perf_counter() - self._started
        if errors and over:
            raise errors[0]


@contextlib.contextmanager
def _kept(errors: list[Exception]) -> Iterator[None]:
    """Collect an error of the block, so that what follows is still done."""
    try:
        yield
    except Exception as error:  # one writer's trouble is not another's
        errors.append(error)
