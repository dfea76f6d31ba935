"""The names of a checkout as an installed Firn has them: `features.views` is firn.features.views, and make is firn.

The folders of a checkout are called features, models and pipeline, which is too common for site-packages. A wheel holds
them inside `firn`, with their imports written anew when it is built; an editable install does the same as it imports.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

STAGES = ("features", "models", "pipeline")
_OURS = rf"(?:{'|'.join(STAGES)})(?:\.[\w.]+)?"
_IMPORT = re.compile(
    rf"^\s*(?:from (?={_OURS} import\b)|import (?={_OURS}(?: as\b|\s*(?:#|$))))", re.MULTILINE
)  # a line of prose may begin with these words as well


def renamed(text: str, verbs: Sequence[str]) -> str:
    """Return the text of a module with imports from `firn.`, and commands of the program `firn` instead of make's."""
    commands = re.compile(rf"\bmake(?= (?:{'|'.join(verbs)})\b)|\bpython -m pipeline\b")
    return commands.sub("firn", _IMPORT.sub(r"\g<0>firn.", text))


def verbs_in(pipeline: Path) -> list[str]:
    """Return the verbs, which are the files of the folder `pipeline`; `cache` stands for those that begin with it."""
    return sorted(
        path.stem.replace("_", "-") for path in pipeline.glob("[a-z]*.py") if path.stem not in ("arguments", "cli")
    )


class Renaming(PathFinder):
    """Finds the modules of a package `firn` whose `__path__` is a checkout."""

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return how a module below `firn` is loaded; None for all others."""
        if not fullname.startswith("firn."):
            return None
        spec = super().find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Renamed(fullname, spec.loader.path)
        return spec


class _Renamed(SourceFileLoader):
    """Compiles a module of a checkout under its name below `firn`; a compiled file would hold the other names."""

    def get_code(self, fullname: str) -> CodeType:
        verbs = verbs_in(Path(__file__).parents[1])
        text = renamed(self.get_data(self.path).decode(), verbs)
        code: CodeType = self.source_to_code(text.encode(), self.path)
        return code


def install() -> None:
    """Let `firn` of an editable install find its modules."""
    sys.meta_path.insert(0, Renaming)
