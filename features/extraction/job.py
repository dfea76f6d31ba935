"""What an extraction is asked for, and what it says of itself in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from features.backbones.recipe import Recipe
from features.cache.entry import Entry

__all__ = ["Job", "Outcome", "rows_per_shard"]

_SHARD_BYTES = 128 << 20
_STAGES = ("decode", "forward", "write")


@dataclass(frozen=True)
class Job:
    """One entry to fill: which backbone, how pictures come in, which maps are kept beside the pooled features."""

    entry: Entry
    recipe: Recipe
    preprocess: str
    maps: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts that the entry shall have."""
        return ("pooled", *(f"maps/{block}" for block in self.maps))

    def row_bytes(self) -> int:
        """Return the bytes that one picture takes in the entry."""
        item = int(np.dtype(self.entry.key.stored).itemsize)
        pooled = sum(2 * c for c, _, _ in self.recipe.blocks.values())
        return item * (pooled + sum(int(np.prod(self.recipe.blocks[block])) for block in self.maps))


@dataclass
class Outcome:
    """What a run did: for the last line that a user reads."""

    pictures: int = 0  # computed
    skipped: int = 0  # found in the cache after reading their bytes
    left_out: dict[str, str] = field(default_factory=dict)  # id -> why it is unreadable
    seconds: dict[str, float] = field(default_factory=dict)  # wall, and decode, forward, write (they overlap)
    workers: int = 1  # threads that decode, in each process
    processes: int = 1

    def busy(self) -> dict[str, float]:
        """Return the share of the time in which each stage was at work: {"decode": 0..1, "forward", "write"}."""
        wall = max(self.seconds.get("wall", 0.0), 1e-9)
        threads = {"decode": self.workers, "forward": 1, "write": 1}
        return {stage: self.seconds.get(stage, 0.0) / threads[stage] / self.processes / wall for stage in _STAGES}

    def limit(self) -> str:
        """Return the stage that the others waited for: the busiest."""
        return max(_STAGES, key=self.busy().__getitem__)


def rows_per_shard(n: int, jobs: Sequence[Job]) -> int:
    """Return how many rows a shard has: a sixteenth of a small set, thousands of a large one, at most 128 MB."""
    row_bytes = max(job.row_bytes() for job in jobs)
    return max(1, min(max(64, -(-n // 16)), 8192, _SHARD_BYTES // row_bytes))
