"""cache-ls: every entry of the cache, what it is to its data set, what it takes, when it was last used."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from features.cache import Digests, Entry
from features.cache.entry import cache_root
from features.cache.gc import bytes_below
from features.cache.index import Manifest
from features.cache.usage import last_used
from features.datasets import Dataset, load_dataset
from features.datasets.load import at_hand
from features.errors import CacheError
from pipeline.cache import find, megabytes, place

__all__ = ["Listed", "list_entries", "print_entries"]


class Listed(NamedTuple):
    """One line of the list."""

    entry: str  # data set and folder
    pictures: str  # rows of pictures wanted when the master was written
    parts: str
    size: str
    state: str
    used: str  # when last


def list_entries(dataset: str = "") -> list[Listed]:
    """Return one line per entry of a data set, or of all; reads no picture and writes nothing.

    The state is that against the data set as it is now, where its pictures are here.
    """
    found = find(dataset)
    given = [load_dataset(dataset)] if dataset else []
    names = {entry.folder.parent.name for entry in found} if not given else set()
    sets = {d.name: d for d in [*given, *filter(None, map(at_hand, sorted(names)))]}
    digests = {name: _digests(d) for name, d in sets.items()}
    return [_listed(e, sets.get(e.folder.parent.name), digests.get(e.folder.parent.name)) for e in found]


def _digests(dataset: Dataset) -> Digests:
    memo = Digests.load(cache_root(dataset.name) / "digests.h5")
    return Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo)


def _listed(entry: Entry, dataset: Dataset | None, digests: Digests | None) -> Listed:
    size = megabytes(bytes_below(entry.folder))
    when = last_used(entry)
    used = datetime.fromtimestamp(when).isoformat(" ", "minutes") if when else "never"
    try:
        manifest = entry.manifest()
        state = _state(entry, manifest, dataset, digests)
    except CacheError:
        return Listed(place(entry), "", "", size, "damaged master; run: make cache-repair", used)
    pictures = f"{len(manifest.ids):,} of {manifest.about['wanted']:,}" if manifest else "no master"
    return Listed(place(entry), pictures, ", ".join(manifest.parts) if manifest else "", size, state, used)


def _state(entry: Entry, manifest: Manifest | None, dataset: Dataset | None, digests: Digests | None) -> str:
    """Return the state in words; "ready" without any more."""
    if dataset is None or digests is None:
        return "pictures not here"
    state = entry.state(dataset, digests, manifest.parts if manifest else ("pooled",))
    return state.word if state.word == "ready" else f"{state.word}: {state.why}"


def print_entries(lines: Iterable[Listed]) -> None:
    """Write the list to stdout: a table on a terminal, columns elsewhere."""
    from rich.console import Console
    from rich.table import Table

    rows = list(lines)
    out = Console()
    if not out.is_terminal or not rows:
        out.file.write("".join(f"{line}\n" for line in _columns(rows)))
        return
    table = Table(*Listed._fields, box=None, header_style="bold", pad_edge=False)
    for column in (1, 3):
        table.columns[column].justify = "right"
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)


def _columns(rows: list[Listed]) -> list[str]:
    """Return header and rows in columns two blanks apart."""
    if not rows:
        return ["the cache is empty"]
    cells = [Listed._fields, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
