"""Survey of a sample of images: their headers, their range of values, and the network's view of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset
from features.errors import FirnError
from features.images import Geometry, ImageFacts, Look, describe, look
from features.images.phash import thumbnail

T = TypeVar("T")
DRAWN_LEAST, DRAWN_BOTH = 0.002, 0.95  # shares of the pixels at either end of the range, and at both


class Seen(NamedTuple):
    """One image that was decoded."""

    row: int  # of the data set
    facts: ImageFacts
    low: float  # of the values as stored
    high: float
    thumbnail: NDArray[np.uint8]  # (S, S), S the network's side
    square: NDArray[np.uint8] | None  # (S, S, 3) as the network sees it, of some images
    drawn: bool = False  # two values cover it: a mask, or a drawing


@dataclass
class Examination:
    """The survey's results: headers, decoded images, and why others cannot be read."""

    facts: dict[int, ImageFacts] = field(default_factory=dict)  # row -> header
    seen: list[Seen] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)  # row -> why


def sample(dataset: Dataset, most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return at most `most` rows, sorted: of each class in each split about its share, but at least a few."""
    if len(dataset) <= most:
        return np.arange(len(dataset))
    rng = np.random.default_rng(seed)
    strata = np.unique(dataset.splits, return_inverse=True)[1] * len(dataset.classes) + dataset.labels
    kinds, counts = np.unique(strata, return_counts=True)
    few = max(1, most // (4 * len(kinds)))
    wanted = np.minimum(counts, np.maximum(few, (most * counts) // counts.sum()))
    chosen = [rng.permutation(np.flatnonzero(strata == k))[:w] for k, w in zip(kinds, wanted, strict=True)]
    every = np.concatenate(chosen)
    return np.sort(rng.permutation(every)[:most])


def examine(
    dataset: Dataset,
    geometry: Geometry,
    *,
    headers: int,
    images: int,
    shown: int,
    most_seconds: float,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """Decode up to `images` images, and read up to `headers` headers; each takes at most about `most_seconds`.

    The squares of the first `shown` images of each class are kept. Unreadable images are told, not raised.
    """
    found, rng = Examination(), np.random.default_rng(seed)
    left = dict.fromkeys(range(len(dataset.classes)), shown)
    rows = rng.permutation(sample(dataset, images, seed=seed)).tolist()
    for done, (row, result) in enumerate(_each(dataset, rows, lambda d, n: look(d, geometry, name=n), most_seconds)):
        if isinstance(result, Look):
            label = int(dataset.labels[row])
            left[label] -= 1
            found.facts[row] = result.facts
            found.seen.append(_seen(row, result, keep=left[label] >= 0))
        else:
            found.unreadable[row] = str(result)
        progress(done + 1, len(rows))
    known = found.facts.keys() | found.unreadable.keys()
    more = [row for row in rng.permutation(sample(dataset, headers, seed=seed)).tolist() if row not in known]
    for row, facts in _each(dataset, more, describe, most_seconds):
        if isinstance(facts, ImageFacts):
            found.facts[row] = facts
        else:
            found.unreadable[row] = str(facts)
    return found


def _seen(row: int, seen: Look, *, keep: bool) -> Seen:
    square = np.rint(seen.square).astype(np.uint8).transpose(1, 2, 0)
    kept = np.broadcast_to(square, (*square.shape[:2], 3)).copy() if keep else None
    return Seen(row, seen.facts, seen.low, seen.high, thumbnail(seen.square), kept, _is_drawn(seen.square))


def _is_drawn(square: NDArray[np.uint8] | NDArray[np.float32]) -> bool:
    """Tell whether nearly all pixels (C, S, S) have the least or the greatest value, and some have either."""
    shares = [float((square == end).mean()) for end in (square.min(), square.max())]
    return min(shares) > DRAWN_LEAST and sum(shares) > DRAWN_BOTH and bool(square.min() < square.max())


def _each(
    dataset: Dataset, rows: Iterable[int], ask: Callable[[bytes, str], T], most_seconds: float
) -> Iterator[tuple[int, T | FirnError]]:
    """Yield what is answered of each image, by threads, until the seconds are over."""
    end = time.monotonic() + most_seconds

    def one(row: int) -> tuple[int, T | FirnError] | None:
        if time.monotonic() > end:
            return None
        name = dataset.ids[row]
        try:
            return row, ask(dataset.source.read(name), name)
        except FirnError as error:
            return row, error

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="look") as threads:
        for answer in threads.map(one, rows):
            if answer is not None:
                yield answer
