"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_EVERY = 10.0  # seconds between plain lines
LONG = 30.0  # seconds from which on it is worth a word how long something will take


_bars: list[Callable[[str], None]] = []  # where lines go while a bar is shown
_deaf: list[bool] = []  # not empty while nobody looks at bars


def printable(text: str) -> str:
    """Return `text` with control characters replaced: a name from a file must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """Return a time in words: 40 s, 12 min, 2.5 h."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Write one line to stderr, above the bar where one is shown; no name in it steers the terminal."""
    text = "\n".join(map(printable, text.split("\n")))
    if _bars:
        _bars[-1](text)
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the lines said in the block instead of writing them; progress is not shown."""
    lines: list[str] = []
    _bars.append(lines.append)
    _deaf.append(True)
    try:
        yield lines
    finally:
        _deaf.pop()
        _bars.pop()


@contextmanager
def shown(what: str, unit: str = "images", *, at_most: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar or lines for `what`; yield the function (done, total) that moves it.

    `at_most` tells that it may end before all is done.
    """
    if _deaf:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines(what, unit, " at most" * at_most)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text(f"{speed:,.1f} {unit}/s" if speed else "")

    words = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    left = (TimeRemainingColumn(), *([TextColumn("at most")] if at_most else []))
    columns = (words, BarColumn(bar_width=12), MofNCompleteColumn(), Rate(), *left)
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=30, expand=True) as bar:
        task = bar.add_task(what, total=None)
        _bars.append(lambda text: bar.console.print(text, markup=False, highlight=False))
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            _bars.pop()


def _lines(what: str, unit: str, at_most: str) -> Callable[[int, int], None]:
    """Return a function that writes a line every ten seconds and at the end."""
    start = last = time.monotonic()
    first: list[int] = []

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        first.append(done - 1) if not first else None
        if now - last < _LINE_EVERY and (done < total or now - start < _LINE_EVERY):
            return
        last = now
        rate = (done - first[0]) / max(now - start, 1e-9)
        left = f", {duration((total - done) / rate)} left{at_most}" if done < total and rate > 0 else ""
        say(f"{what}: {done:,} of {total:,} {unit}, {rate:,.1f}/s{left}")

    return show
