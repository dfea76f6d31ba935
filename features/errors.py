"""Errors for users: one line with what was expected, what came and what to type."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable

LISTED = 30  # names of classes or findings in a message; more are counted
MOST_NAMES = 200  # listed in a message; more are counted
PROGRAM = "firn" if __name__.startswith("firn.") else "make"  # what a user types: installed, or in a checkout


class FirnError(Exception):
    """A mistake in the input or the surroundings; the command line prints it in one line and exits with 2."""


class UnknownName(FirnError):
    """A name that is not a row of the table it was looked up in."""


class BadBundle(FirnError):
    """A predictor's bundle that is malformed, unsafe to read, or does not reproduce its golden samples."""


class BadDataset(FirnError):
    """A data set that is missing, empty or not laid out in any known way."""


class BadDownload(FirnError):
    """A download that did not arrive whole."""


class BadImage(FirnError):
    """A file that cannot be decoded into pixels."""


class BadWeights(FirnError):
    """A weights file that is missing, unsafe to load or does not fit the backbone."""


class CacheError(FirnError):
    """Features that are missing, partial, stale or damaged; the message names the command that mends it."""


class ConstantFeatures(FirnError):
    """Features that are the same for all images, from which nothing can be learned."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Say that `name` is no `kind`, list the `known` ones (of very many their number) and guess what was meant."""
    names = sorted(known)
    folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f" (did you mean {folded[close[0]]}?)" if close else ""
    every = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names):,} names"
    return UnknownName(f"unknown {kind} {name!r}; known: {every}{hint}")


def listed(names: Iterable[str]) -> str:
    """Return names joined by commas; of very many the first, and how many more there are."""
    every = list(names)
    more = len(every) - LISTED
    return ", ".join(every) if more <= 0 else f"{', '.join(every[:LISTED])} and {more:,} more"


def counted(number: int, noun: str, several: str = "") -> str:
    """Return "1 image", "1,200 images"; `several` is the plural where it is more than an s."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def command(verb: str, **options: object) -> str:
    """Return a command to type, of make or of an installed `firn`, with the variables that are given, quoted for it."""
    return " ".join([PROGRAM, verb, *(f"{name}={quoted(str(value))}" for name, value in options.items())])


def quoted(value: str) -> str:
    """Return a value as it has to be typed behind NAME=, for the shell and for make where it is make that reads it."""
    return shlex.quote(value.replace("$", "$$") if PROGRAM == "make" else value)


def unquoted(value: str) -> str:
    """Return the value that a word of `quoted` stands for, which the shell has read."""
    return value.replace("$$", "$") if PROGRAM == "make" else value
