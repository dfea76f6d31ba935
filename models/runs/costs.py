"""What a run cost to train, a stack with all that it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.runs.record import RunRecord
from models.runs.summary import place_of


class Cost(NamedTuple):
    """Seconds of training of all folds and the final fit, on the machine that trained."""

    seconds: float
    members: int  # runs that a stack combines, those of stacks in it too
    unknown: int  # members that are not among the runs at hand: the seconds are without theirs


def costs(records: Sequence[RunRecord]) -> list[Cost]:
    """Return what each run cost; a member that several stacks in a stack share is counted once."""
    known = {place_of(record): record for record in records}
    return [_cost(record, known) for record in records]


def _cost(record: RunRecord, known: Mapping[str, RunRecord]) -> Cost:
    members, left = dict[str, None](), list(record.bases)
    while left:
        if (place := left.pop()) not in members:
            members[place] = None
            left += known[place].bases if place in known else ()
    there = [known[place] for place in members if place in known]
    return Cost(sum(map(_own, [record, *there])), len(members), len(members) - len(there))


def _own(record: RunRecord) -> float:
    return record.seconds["oof"] + record.seconds["fit"]
