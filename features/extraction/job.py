"""What an extraction is asked for, and what it says of itself in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from features.backbones.spec import Recipe
from features.cache.entry import Entry

_SHARD_BYTES = 128 << 20
STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True)
class Job:
    """One entry to fill: which backbone, how images come in, which maps are kept beside the pooled features."""

    entry: Entry
    recipe: Recipe
    preprocess: str
    maps: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts that the entry shall have."""
        return ("pooled", *(f"maps/{block}" for block in self.maps))

    def row_bytes(self) -> int:
        """Return the bytes that one image takes in the entry."""
        item = int(np.dtype(self.entry.key.stored).itemsize)
        pooled = sum(2 * c for c, _, _ in self.recipe.blocks.values())
        return item * (pooled + sum(int(np.prod(self.recipe.blocks[block])) for block in self.maps))


@dataclass
class Outcome:
    """What a run did: for the last line that a user reads."""

    images: int = 0  # computed
    skipped: int = 0  # found in the cache after reading their bytes
    left_out: dict[str, str] = field(default_factory=dict)  # id -> why it is unreadable
    seconds: dict[str, float] = field(default_factory=dict)  # wall, and read, decode, forward, write (they overlap)
    threads: dict[str, int] = field(default_factory=dict)  # of each stage in each process; 1 where it is not named
    processes: int = 1

    def busy(self) -> dict[str, float]:
        """Return the share of the time in which the threads of each stage were at work in it, 0..1, by stage.

        Reading and writing wait for disks; on a CPU decoding and the networks have the same threads.
        """
        wall = max(self.seconds.get("wall", 0.0), 1e-9) * self.processes
        return {stage: self.seconds.get(stage, 0.0) / self.threads.get(stage, 1) / wall for stage in STAGES}

    def limit(self) -> str:
        """Return the stage that the others waited for: the busiest."""
        return max(STAGES, key=self.busy().__getitem__)


def rows_per_shard(n: int, jobs: Sequence[Job]) -> int:
    """Return how many rows a shard has: a sixteenth of a small set, thousands of a large one, at most 128 MB."""
    row_bytes = max(job.row_bytes() for job in jobs)
    return max(1, min(max(64, -(-n // 16)), 8192, _SHARD_BYTES // row_bytes))
