"""What was typed: verbs one after the other, variables as behind make, flags of one verb, variables in a file."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import FirnError
from features.options import typed
from pipeline.cli import (
    CONFIG,
    VERBS,
    Field,
    behind,
    check_filled,
    check_taken,
    fields_of,
    flag_of,
    load_verb,
    run_typed,
)

_GIVEN = re.compile(r"([A-Za-z_]+)=(.*)", re.DOTALL)
_NO, _YES = ("", "0", "false", "no", "n", "f", "off"), ("1", "true", "yes", "y", "t", "on")


def configured(path: str) -> dict[str, str]:
    """Return the variables in a CONFIG= file, as they are typed; a list is several names.

    FirnError for a file that does not read, for a name that no command takes, and for what is no value.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FirnError(f"expected CONFIG= to be a TOML file, and {path} does not read: {why}") from None
    known = {field.name.upper(): field for name in VERBS for field in fields_of(load_verb(name))}
    for name in content:
        if name not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise FirnError(f"{path}: no command takes {name}{hint}; it is to hold variables of docs/reference.md")
    return {name: _value(path, known[name], value) for name, value in content.items()}


def _value(path: str, field: Field, value: Any) -> str:
    """Return a value of a TOML file as it is typed. FirnError for what is no value of the variable."""
    several, switch = isinstance(value, list), field.kind is bool
    for one in value if several else [value]:
        if not isinstance(one, str | int | float) or (isinstance(one, bool) and (several or not switch)):
            kinds = "true, false, 1 or 0" if switch else "a text, a number or a list of these"
            raise FirnError(f"{path}: expected {field.name.upper()} to be {kinds}, got {_toml(value):.60}")
    if several:
        return " ".join(map(typed, value))
    return "0" if value is False else typed(value)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


class Typed(NamedTuple):
    """A command line in its parts."""

    verbs: list[str]
    variables: dict[str, str]  # NAME=value, as behind make
    rest: list[str]  # flags of one verb

    @staticmethod
    def of(arguments: list[str]) -> Typed:
        """Return the parts: one verb or several first, then variables and flags."""
        count = next((i for i, word in enumerate(arguments) if word not in VERBS), len(arguments))
        verbs, variables, rest = arguments[:count], dict[str, str](), list[str]()
        fields = [field for verb in verbs for field in fields_of(load_verb(verb))]
        valued = {f"--{CONFIG.lower()}", *(flag_of(field) for field in fields if field.kind is not bool)}
        for word in arguments[count:]:
            if verbs and (found := _GIVEN.fullmatch(word)) and not valued.intersection(rest[-1:]):
                variables[found[1]] = found[2]
            else:
                rest.append(word)
        if len(verbs) > 1 and rest:
            raise FirnError(f"expected NAME=value behind several commands, got {rest[0]}")
        return Typed(verbs, variables, rest)

    def arguments_of(self, verb: str, given: frozenset[str]) -> list[str]:
        """Return what typer reads of one verb: what was typed, and what a CONFIG= file adds to it and to make's.

        Raises FirnError for a variable that no verb takes.
        """
        for variable in self.variables:
            check_taken(variable, self.verbs)
        config = self.variables.get(CONFIG) or behind(f"--{CONFIG.lower()}", self.rest)
        config = config or (os.environ.get(CONFIG, "") if CONFIG in given else "")
        more = configured(config) if config else {}
        every = {name: value for name, value in more.items() if name not in given} | self.variables
        own = {field.name.upper(): field for field in fields_of(load_verb(verb))}
        return [
            verb,
            *(word for name, value in every.items() if name in own for word in _flag(own[name], value)),
            *self.rest,
        ]


def _flag(field: Field, value: str) -> list[str]:
    """Return a variable as a flag."""
    flag = flag_of(field)
    if not value:
        check_filled(field)
    if field.kind is not bool:
        return [f"{flag}={value}"]
    if value.lower() not in (*_NO, *_YES):
        raise FirnError(f"expected {field.name.upper()}= to be 1 or 0, got {value!r}")
    return [flag] if value.lower() in _YES else []


def run() -> int:
    """Run what was typed, one verb after the other; return the exit code. Raises FirnError for a user's mistake."""
    typed_, given = Typed.of(sys.argv[1:]), frozenset(os.environ.get("FIRN_GIVEN", "").split())
    for verb in typed_.verbs:
        arguments = typed_.arguments_of(verb, given)
        if code := run_typed(arguments, last=verb == typed_.verbs[-1]):
            return code
    return 0 if typed_.verbs else run_typed(sys.argv[1:])
