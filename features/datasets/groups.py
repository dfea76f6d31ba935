"""Which pictures come from one patient, slide or source patch."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

from features.errors import BadDataset

__all__ = ["Groups", "from_name", "from_table", "unknown_groups"]

Groups = Callable[[Path, list[str]], list[str] | None]  # root of the data set, ids -> a group each, or None if unknown


def unknown_groups(root: Path, ids: list[str]) -> None:
    """Return None: nothing is known of any group."""


def from_name(pattern: str) -> Groups:
    """Return a parser that reads the group off the id: what `pattern` captures there, joined by '/'.

    A picture whose id does not match is a group of its own; the groups are unknown where none matches.
    """
    name = re.compile(pattern)

    def parse(root: Path, ids: list[str]) -> list[str] | None:
        found = [name.search(picture) for picture in ids]
        if not any(found):
            return None
        return [
            "/".join(filter(None, match.groups())) if match else picture
            for match, picture in zip(found, ids, strict=True)
        ]

    return parse


def from_table(file: str, column: str) -> Groups:
    """Return a parser that looks the group up in a CSV below the root, by the columns `class` and `file`.

    The groups, numbered anew in each class, read "class/number"; they are unknown where there is no such CSV. Raises
    BadDataset where the CSV lacks a column or a picture.
    """

    def look_up(root: Path, ids: list[str]) -> list[str] | None:
        path = root / file
        if not path.is_file():
            return None
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                known = {
                    f"{row['class']}/{row['file']}": f"{row['class']}/{row[column]}" for row in csv.DictReader(lines)
                }
        except KeyError as error:
            raise BadDataset(f"{path} has no column {error}; expected class, file and {column}") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BadDataset(f"{path} cannot be read ({error}); mend it, or remove it to do without groups") from None
        names = ["/".join(picture.split("/")[-2:]) for picture in ids]
        if strange := [picture for picture in names if picture not in known]:
            raise BadDataset(f"{path} does not list {strange[0]}; add its line, or remove the CSV to do without groups")
        return [known[picture] for picture in names]

    return look_up
