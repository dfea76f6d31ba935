"""extract: images -> cached features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from features.cache import State
from features.datasets import load_dataset
from features.errors import unknown
from features.extraction.engine import ENGINES, fill
from features.progress import say
from features.request import Request, resolve
from features.views import choose_blocks

if TYPE_CHECKING:
    pass


def extract(
    dataset: str,
    backbone: str,
    *,
    maps: str = "",
    preprocess: str = "",
    precision: str = "auto",
    device: str = "auto",
    weights: str = "",
    batch_size: int = 0,
    workers: int = 0,
    seed: int = 0,
    strict: bool = False,
    engine: str = "local",
) -> list[str]:
    """Fill the cache entries of a data set for one or several backbones; return one line per entry.

    What is ready is left alone; a stale master is refreshed; what is missing is computed, each image decoded once.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    images = load_dataset(dataset, seed=seed)
    requests = resolve(images, backbone, weights=weights, preprocess=preprocess, precision_=precision, device_=device)
    wanted = [(r, choose_blocks(list(r.recipe.blocks), maps) if maps else ()) for r in requests]
    states = [r.state(_parts(blocks)) for r, blocks in wanted]
    todo = [(r, blocks) for (r, blocks), state in zip(wanted, states, strict=True) if state.word != "ready"]
    for (r, _), state in zip(wanted, states, strict=True):
        say(f"{images.name} with {r.recipe.name}: {state.word} ({state.why})")
    if todo:
        fill(todo, batch_size=batch_size, workers=workers, strict=strict, engine=engine)
    return [_line(r, r.state(_parts(blocks))) for r, blocks in wanted]


def _parts(blocks: tuple[str, ...]) -> tuple[str, ...]:
    return ("pooled", *(f"maps/{block}" for block in blocks))


def _line(request: Request, state: State) -> str:
    return f"{state.word}: {request.dataset.name} {request.recipe.name} {state.why} {request.entry.master}"
