"""Silence for the thread that decodes, and for no other."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hushed"]


class _Thread(threading.local):
    hushed = False


class _AnyWhileHushed(type):
    """Let every category of warning pass for a subclass, as long as the asking thread is hushed."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return _THREAD.hushed


class _DecoderWarning(Warning, metaclass=_AnyWhileHushed):
    """The category of the one filter: what a decoder says of a picture that it can read all the same."""


_THREAD = _Thread()


@contextmanager
def hushed() -> Iterator[None]:
    """Drop the warnings that this thread raises inside the block; other threads keep theirs.

    `warnings.catch_warnings` swaps the filters of the whole process, so two threads that leave it in the wrong order
    leave the wrong filters behind. Here one filter stays for good, and asks the thread whether it applies.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[2] is not _DecoderWarning:  # somebody has put or taken back filters since
        warnings.simplefilter("ignore", _DecoderWarning)
    before, _THREAD.hushed = _THREAD.hushed, True
    try:
        yield
    finally:
        _THREAD.hushed = before
