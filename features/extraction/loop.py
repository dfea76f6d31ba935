"""The loop: every image is read and decoded once and goes through the lane of every backbone that lacks it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.datasets.dataset import Dataset
from features.errors import BadImage
from features.extraction.forward import Forward
from features.extraction.job import Job, Outcome, rows_per_shard
from features.extraction.prefetch import Prepared, prepare
from features.extraction.shard_writer import Lane, refresh, remembered, settle
from features.extraction.workers import Crew
from features.images import Geometry

_REFRESH_EVERY = 60.0  # seconds between masters while a long run goes on, for readers that do not wait
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
    run = _Run(dataset, jobs, device, batch_size, strict, progress)
    run.whole(workers, shard_rows or rows_per_shard(len(dataset), jobs))
    return run.outcome


class Part(NamedTuple):
    """What came of a stretch of a data set."""

    sha256: NDArray[np.bytes_]  # (m,) of its images, UNKNOWN where one could not be read
    left_out: list[dict[str, str]]  # for each job: sha256 -> why it is unreadable
    outcome: Outcome


def extract_part(
    dataset: Dataset,
    jobs: list[Job],
    *,
    first: int,
    rows: int,
    device: str,
    batch_size: int,
    workers: int,
    strict: bool,
) -> Part:
    """Commit the shards of a stretch of a data set that begins with unit `first`, a unit being `rows` images.

    `dataset` has the images of the stretch alone. No master is written: that is for whoever knows all parts.
    """
    run = _Run(dataset, jobs, device, batch_size, strict, lambda done, total: None, first, masters=False)
    run.whole(workers, rows)
    return Part(run.digests.sha256, run.left_out, run.outcome)


class _Run:
    """The state of one call of `extract`."""

    def __init__(
        self,
        dataset: Dataset,
        jobs: list[Job],
        device: str,
        batch_size: int,
        strict: bool,
        progress: Callable[[int, int], None],
        first: int = 0,
        masters: bool = True,
    ) -> None:
        self._first, self._masters = first, masters  # number of the first unit; whether the masters are ours to write
        self.outcome, self._dataset, self._strict, self._progress = Outcome(), dataset, strict, progress
        self._started, self._refreshed, self._clock = time.perf_counter(), time.perf_counter(), time.time_ns()
        self.digests = remembered(dataset)
        geometries = [job.recipe.geometry(job.preprocess) for job in jobs]
        self._geometries: tuple[Geometry, ...] = tuple(dict.fromkeys(geometries))
        self.left_out: list[dict[str, str]] = []
        self._lanes: list[Lane] = []
        self._crew = Crew(device)
        for job, geometry in zip(jobs, geometries, strict=True):
            job.entry.clean()
            forward = Forward(
                job.recipe,
                maps=job.maps,
                device=device,
                precision=job.entry.key.precision,
                stored=job.entry.key.stored,
                batch_size=batch_size,
            )
            self._lanes.append(Lane(job, forward, self._geometries.index(geometry), self._crew))
            manifest = job.entry.manifest()
            self.left_out.append(dict(manifest.left_out) if manifest else {})
        self._active: dict[int, list[Lane]] = {}  # unit -> lanes that claimed it
        self._open: int | None = None  # the unit whose images are coming in

    def whole(self, workers: int, rows: int) -> None:
        """Work through all units and come to an end, in good order whatever happens."""
        crew = self._crew
        self.outcome.threads = {
            "read": workers,
            "decode": crew.size if crew.decoders else workers,
            "forward": crew.size,
        }
        try:
            self._go(workers, rows)
            self._finish(over=True)
        except BaseException:
            self._finish(over=False)
            raise

    def _go(self, workers: int, rows: int) -> None:
        """Work through all units; those of other living processes are waited for, and taken over if these die."""
        self._rows = rows
        ahead = 2 * max(lane.batch_size for lane in self._lanes) + 8 * workers
        waiting = list(range(self._first, self._first - (-len(self._dataset) // rows)))
        self._done = len(self._dataset) - sum(len(self._todo(unit)) for unit in waiting)
        while waiting:
            later: list[int] = []
            stream = prepare(
                self._dataset.source,
                self._dataset.ids,
                self._indices(waiting, later),
                self._geometries,
                wanted=lambda sha256: bool(self._lacking(sha256)),
                workers=workers,
                ahead=ahead,
                decoders=self._crew.decoders,
            )
            for prepared in stream:
                self._take(prepared)
            self._end_unit()
            for lane in self._lanes:
                lane.flush()
            if later == waiting:
                time.sleep(_POLL)
            waiting = later

    def _indices(self, units: list[int], later: list[int]) -> Iterator[int]:
        """Yield the images to do, claiming unit after unit; units that others hold are put into `later`."""
        for unit in units:
            todo = self._todo(unit)
            if not todo:
                continue
            claiming = [lane for lane in self._lanes if lane.claims.acquire(unit)]
            for lane in claiming:
                lane.rescan()
            todo = self._todo(unit)
            if todo and claiming:
                self._active[unit] = claiming
                yield from todo
            else:
                for lane in claiming:
                    lane.claims.release(unit)
            if todo and len(claiming) < len(self._lanes):
                for lane in self._lanes:
                    lane.rescan()
                later.append(unit)

    def _todo(self, unit: int) -> list[int]:
        """Return the images of a unit that are unknown or lack a row somewhere."""
        start = (unit - self._first) * self._rows
        digests = self.digests.sha256[start : start + self._rows].tolist()
        return [start + i for i, sha256 in enumerate(digests) if not sha256 or self._lacking(sha256)]

    def _lacking(self, sha256: bytes) -> list[Lane]:
        """Return the lanes in which an image has no row and is not known to be unreadable."""
        name = sha256.decode()
        pairs = zip(self._lanes, self.left_out, strict=True)
        return [lane for lane, left_out in pairs if name not in left_out and lane.lacks(sha256)]

    def _take(self, prepared: Prepared) -> None:
        """Send one prepared image into the lanes that need it."""
        unit = self._first + prepared.image // self._rows
        if unit != self._open:
            self._end_unit()
            self._open = unit
        self._seconds("read", prepared.reading)
        self._seconds("decode", prepared.decoding)
        self.digests.sha256[prepared.image] = prepared.sha256
        if prepared.error:
            self._leave_out(prepared)
        lanes = [lane for lane in self._active.get(unit, []) if prepared.pixels and lane.lacks(prepared.sha256)]
        for lane in lanes:
            lane.add(unit, prepared.sha256, prepared.pixels[lane.geometry])
        self.outcome.images += bool(lanes)
        self.outcome.skipped += not lanes and not prepared.error
        self._done += 1
        self._progress(self._done, len(self._dataset))

    def _end_unit(self) -> None:
        """Close the unit that was open and, now and then, bring the masters up to date."""
        if self._open is not None:
            for lane in self._active.pop(self._open, []):
                lane.end(self._open)
        self._open = None
        if time.perf_counter() - self._refreshed > _REFRESH_EVERY:
            self._refresh(over=False)

    def _leave_out(self, prepared: Prepared) -> None:
        """Remember an unreadable image by its content, so that it is not tried again until it changes."""
        if self._strict:
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
        for lane, left_out in zip(self._lanes, self.left_out, strict=True):
            if over or (lane.holds_any(listed) and not lane.entry.lists(unknown)):
                yield lane.entry, left_out

    def _seconds(self, stage: str, seconds: float) -> None:
        self.outcome.seconds[stage] = self.outcome.seconds.get(stage, 0.0) + seconds

    def _finish(self, *, over: bool) -> None:
        """Commit what is computed and write the masters, whatever fails on the way.

        Raises the first error where the run was `over`; else the one that ended it is the one to tell.
        """
        errors: list[Exception] = []
        for lane in self._lanes:
            with _kept(errors):
                lane.close()
            for stage, seconds in lane.seconds.items():
                self._seconds(stage, seconds)
        self._crew.close()
        with _kept(errors):
            nothing = self.outcome.left_out and not self.outcome.images and not self.outcome.skipped
            if nothing and self._masters:
                raise BadImage(f"no image could be read; the first: {next(iter(self.outcome.left_out.values()))}")
            self._name_left_out()
            if over and not errors and self._masters:
                self._clock = settle(self._dataset, self.digests, self._clock)
            self._refresh(over=over and not errors)
        self._seconds("wall", time.perf_counter() - self._started)
        if errors and over:
            raise errors[0]


@contextlib.contextmanager
def _kept(errors: list[Exception]) -> Iterator[None]:
    """Put an error of the block aside."""
    try:
        yield
    except Exception as error:  # one lane's trouble is not another's
        errors.append(error)
