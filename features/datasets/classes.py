"""Which class is label 0, which is label 1."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["class_order"]

NEGATIVE = ("normal", "negative", "benign", "healthy", "control", "no_finding")
_WORD = re.compile(rf"(?<![a-z])({'|'.join(NEGATIVE)})(?![a-z])")  # a whole word: not the "normal" of "abnormal"


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in the order of their labels: numbers by size, else by the alphabet.

    Of exactly two the negative one comes first, so that label 1 is the finding: the one named by a word of NEGATIVE.
    """
    classes = sorted(set(names))
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    if len(classes) == 2:
        classes.sort(key=_finding)
    return tuple(classes)


def _finding(name: str) -> int:
    """Return 0 for a negative class by its whole name, 1 for one by a word of it, 2 for any other."""
    plain = re.sub(r"[\s-]+", "_", name.lower())
    if plain in NEGATIVE:
        return 0
    return 1 if _WORD.search(plain) else 2
