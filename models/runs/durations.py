"""How long trainings are likely to take, from runs that were trained before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple

from features.storage import artifacts_root
from models.runs.record import RunRecord, load_record

_LOOKED_AT = 300  # runs, the latest ones


class Training(NamedTuple):
    """A training that is to come."""

    head: str
    backbone: str
    images: int


class Guess(NamedTuple):
    """What earlier runs let one expect."""

    seconds: float
    known: int  # trainings that it is of
    unknown: tuple[str, ...]  # heads that were never trained before


def guess(wanted: Sequence[Training]) -> Guess:
    """Return how long trainings take if they go as before: the median seconds per image of each head.

    Runs of the same head and backbone tell, without any those of the same head.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    for record in _records():
        rate = (record.seconds["oof"] + record.seconds["fit"]) / max(1, _images(record))
        for name in (record.backbone, ""):
            rates.setdefault((record.head, name), []).append(rate)
    found = {one: rates.get((one.head, one.backbone)) or rates.get((one.head, "")) for one in wanted}
    seconds = sum(median(rate) * one.images for one, rate in found.items() if rate)
    unknown = tuple(dict.fromkeys(one.head for one, rate in found.items() if not rate))
    return Guess(seconds, sum(bool(rate) for rate in found.values()), unknown)


def _records() -> Iterable[RunRecord]:
    paths = sorted((artifacts_root() / "heads").rglob("run.json"), key=lambda path: -path.stat().st_mtime)
    records = (load_record(path.parent) for path in islice(paths, _LOOKED_AT))
    return (record for record in records if record is not None and not record.bases)


def _images(record: RunRecord) -> int:
    return sum(sum(by_class.values()) for by_class in record.counts.values())
