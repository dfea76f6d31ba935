"""Fill what cache entries lack, in this process or on Ray, and tell how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from features.devices import BATCH
from features.extraction.rates import last_rate, note_rate
from features.options import ExtractOptions
from features.progress import LONG, duration, say, shown
from features.request import Request

if TYPE_CHECKING:
    from features.extraction.job import Outcome


def _local() -> Callable[..., Outcome]:
    """Return extraction in this process."""
    from features.devices import checked, cores
    from features.extraction.loop import extract

    def run(*what: Any, device: str, workers: int, **how: Any) -> Outcome:
        return extract(*what, device=checked(device), workers=workers or cores(), **how)

    return run


def _ray() -> Callable[..., Outcome]:
    """Return extraction on all GPUs or cores that Ray finds; each worker asks for itself whether its GPU is there."""
    from features.extraction.on_ray import extract_on_ray

    return extract_on_ray


ENGINES: dict[str, Callable[[], Callable[..., Outcome]]] = {"local": _local, "ray": _ray}


def fill(todo: list[tuple[Request, tuple[str, ...]]], how: ExtractOptions) -> None:
    """Compute what the requests (with the blocks whose maps they want) lack, and tell how it went. Imports torch."""
    from features.extraction.job import Job

    run = ENGINES[how.engine]()
    jobs = [Job(r.entry, r.spec, r.preprocess, blocks) for r, blocks in todo]
    first = todo[0][0]
    size = how.batch_size or BATCH[first.device.partition(":")[0]]
    names = ", ".join(backbones := [r.spec.name for r, _ in todo])
    _say_before(todo, backbones, first.device)
    with shown(f"extract {first.dataset.name} with {names}") as progress:
        outcome = run(
            first.dataset,
            jobs,
            device=first.device,
            batch_size=size,
            workers=how.workers,
            strict=how.strict,
            progress=progress,
        )
    for image, reason in list(outcome.left_out.items())[:20]:
        say(f"left out {image}: {reason}")
    if len(outcome.left_out) > 20:
        say(f"... and {len(outcome.left_out) - 20} more; all are listed in features.h5 under left_out")
    say(_told(outcome, len(first.dataset)))
    if outcome.processes == 1:
        note_rate(backbones, first.device, first.entry.key.precision, outcome.images, outcome.seconds["wall"])


def _say_before(todo: list[tuple[Request, tuple[str, ...]]], backbones: Sequence[str], device: str) -> None:
    """Say how long it takes, where that is long and an extraction with these backbones went before."""
    first = todo[0][0]
    rate = last_rate(backbones, device, first.entry.key.precision)
    if rate and (seconds := len(first.dataset) / rate) > LONG:
        say(f"all {len(first.dataset):,} images: about {duration(seconds)}, at {rate:,.1f}/s as the last time here")


def _told(outcome: Outcome, wanted: int) -> str:
    """Return the last line of a run: how many, how fast, which stage the others waited for, and how busy all were."""
    wall, limit = outcome.seconds["wall"], outcome.limit()
    busy = ", ".join(f"{stage} {share:.0%}" for stage, share in outcome.busy().items())
    gpu = f", GPU {np.mean(outcome.gpu):.0f}%" if outcome.gpu else ""
    at_work = f"the limit was {limit}, waited for {outcome.waited(limit):.0%} of the time; at work: {busy}{gpu}"
    there = max(0, wanted - outcome.images - len(outcome.left_out))
    others = f"{there:,} were there already, {len(outcome.left_out):,} left out"
    rate = f"{outcome.images:,} images in {wall:,.1f} s ({outcome.images / wall:,.1f}/s)"
    return "; ".join(part for part in (rate, at_work * bool(outcome.images), others) if part)
