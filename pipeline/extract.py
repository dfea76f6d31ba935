"""extract: images -> cached features."""

from __future__ import annotations

from features.cache import State
from features.errors import unknown
from features.extraction.engine import ENGINES, fill
from features.options import ExtractOptions, FeatureOptions
from features.progress import say
from features.request import Request, resolve
from features.views import choose_blocks


def extract(features: FeatureOptions, how: ExtractOptions) -> list[str]:
    """Fill the cache entries of a data set for one or several backbones; return one line per entry.

    What is ready is left alone; a stale master is refreshed; what is missing is computed, each image decoded once.
    """
    if how.engine not in ENGINES:
        raise unknown("engine", how.engine, ENGINES)
    dataset = features.data.load()
    for record in dataset.left_out:
        say(str(record))
    wanted = [(r, choose_blocks(list(r.spec.blocks), how.maps) if how.maps else ()) for r in resolve(dataset, features)]
    states = [r.state(_parts(blocks)) for r, blocks in wanted]
    for (r, _), state in zip(wanted, states, strict=True):
        say(f"{dataset.name} with {r.spec.name}: {state.word} ({state.why})")
    if todo := [one for one, state in zip(wanted, states, strict=True) if state.word != "ready"]:
        fill(todo, how)
    return [_line(r, r.state(_parts(blocks))) for r, blocks in wanted]


def _parts(blocks: tuple[str, ...]) -> tuple[str, ...]:
    return ("pooled", *(f"maps/{block}" for block in blocks))


def _line(request: Request, state: State) -> str:
    return f"{state.word}: {request.dataset.name} {request.spec.name} {state.why} {request.entry.master}"
