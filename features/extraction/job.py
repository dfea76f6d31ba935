"""What an extraction is asked for, and what it says of itself in the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from features.backbones.spec import BackboneSpec
from features.cache.entry import Entry

_SHARD_BYTES = 128 << 20
STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True)
class Job:
    """One entry to fill: which backbone, how images come in, which maps are kept beside the pooled features."""

    entry: Entry
    spec: BackboneSpec
    preprocess: str
    maps: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts that the entry shall have."""
        return ("pooled", *(f"maps/{block}" for block in self.maps))

    def row_bytes(self) -> int:
        """Return the bytes that one image takes in the entry."""
        item = int(np.dtype(self.entry.key.stored).itemsize)
        pooled = sum(len(self.spec.poolings) * c for c, _, _ in self.spec.blocks.values())
        return item * (pooled + sum(int(np.prod(self.spec.blocks[block])) for block in self.maps))


class Settings(NamedTuple):
    """How an extraction works; the same for all of its jobs and ranges."""

    device: str
    batch_size: int  # images that go through a network at once
    workers: int  # threads that read, and on a GPU as many that decode
    strict: bool  # whether an unreadable image ends it
    rows: int  # of a partition, which becomes a shard
    images: int  # of the whole data set


Seconds: TypeAlias = defaultdict[str, float]  # by stage


def no_seconds() -> Seconds:
    """Return where seconds can be added up."""
    return defaultdict(float)


def add(total: Seconds, more: Mapping[str, float]) -> None:
    """Add seconds to those of the same stages."""
    for stage, seconds in more.items():
        total[stage] += seconds


@dataclass
class Outcome:
    """What a run did, how long each stage worked, and what the stages waited for."""

    images: int = 0  # computed
    skipped: int = 0  # found in the cache after reading their bytes
    left_out: dict[str, str] = field(default_factory=dict)  # id -> why it is unreadable
    seconds: Seconds = field(default_factory=no_seconds)  # wall, and at work: read, decode, forward, write
    # Seconds for which decoders waited for bytes ("read"), the loop for pixels ("decode") or for room before the
    # networks ("write"), and writers for features ("forward").
    waits: Seconds = field(default_factory=no_seconds)
    threads: dict[str, int] = field(default_factory=dict)  # of each stage in each process; 1 where it is not named
    shared: bool = False  # whether the same threads decode and run the networks, as on a CPU
    gpu: list[int] = field(default_factory=list)  # utilisation in percent, looked up now and then
    processes: int = 1

    def busy(self) -> dict[str, float]:
        """Return the share of the time in which the threads of each stage were at work in it, 0..1, by stage."""
        return {stage: self._share(self.seconds[stage], stage) for stage in STAGES}

    def waited(self, stage: str) -> float:
        """Return the share of the time in which a stage was waited for, 0..1: see `waits`.

        Shared threads have one queue: whoever waits for room before the networks waits for decoding too.
        """
        room = self.waits["write"] if self.shared and stage == "decode" else 0.0
        return self._share(self.waits[stage] + room, {"read": "decode", "forward": "write"}.get(stage, "loop"))

    def _share(self, seconds: float, of: str) -> float:
        return seconds / max(1e-9, self.threads.get(of, 1) * self.processes * self.seconds["wall"])

    def limit(self) -> str:
        """Return the stage that the others waited for.

        Where the loop waits for room, that is the writer, if it works longer than it waits for features, else the
        network. Where it waits for pixels, it is reading, if decoders wait for bytes longer than they work, else
        decoding; where decoding and networks share their threads, whichever of both takes more of them.
        """
        work, waits = self.seconds, self.waits
        if waits["write"] > waits["decode"] and work["write"] > waits["forward"]:
            return "write"
        if waits["read"] > work["decode"] + work["forward"] * self.shared:
            return "read"
        downstream = work["forward"] > work["decode"] if self.shared else waits["write"] > waits["decode"]
        return "forward" if downstream else "decode"


def rows_per_shard(n: int, jobs: Sequence[Job]) -> int:
    """Return how many rows a shard has: a sixteenth of a small set, thousands of a large one, at most 128 MB."""
    row_bytes = max(job.row_bytes() for job in jobs)
    return max(1, min(max(64, -(-n // 16)), 8192, _SHARD_BYTES // row_bytes))
