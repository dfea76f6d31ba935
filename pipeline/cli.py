"""The command line: each verb's option objects as flags, or as the variables that make was given."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from features.errors import FirnError, quoted
from features.options import Taking, leaves, typed

Verb = Callable[..., Any]

VERBS = {  # in the order of the flow: what `make` and --help say of each
    "doctor": "what is there, what the network will see, time, disk, and a verdict",
    "extract": "stage one: images -> cached features",
    "audit": "duplicates, leaks, doubtful labels, odd images",
    "train-heads": "stage two: cached features -> heads and their predictions",
    "finetune": "train the last blocks too, from cached maps",
    "transfer": "does a detour over a source domain help?",
    "compare": "all runs of a data set -> ranked table, results, HTML page",
    "report": "the page with images of errors, class activation maps and the audit",
    "explain": "hits and misses under class activation maps",
    "learning-curve": "would more patients help?",
    "bundle": "a run -> one folder or .zip that predicts on any machine",
    "predict": "new images -> predictions.csv",
    "export": "a bundle -> ONNX or torch, with a model card",
    "reproduce": "a recorded run made again, and a verdict",
    "cache-ls": "every cache entry: bytes, state, age",
    "cache-verify": "read every byte of the cache (or of a pack), list what is damaged",
    "cache-repair": "compute again just what is damaged",
    "cache-why": "why features are not ready",
    "cache-gc": "list what a data set needs no more; YES=1 removes it",
    "cache-pack": "features -> one HDF5 file for a colleague",
}
_COMMAND = re.compile(
    r"\bmake (?P<targets>[a-z]+(?:[ -][a-z]+)*)(?P<given>(?: [A-Z_]+=(?:'[^']*'|\"[^\"]*\"|[^\s'\";,)])+)*)"
)
_OF_A_VERB = {"OUT", "MODEL", "RUN", "YES", "BUDGET"}  # mean something else to another verb
MAKE_ONLY = {"PYTHON", "BASE_PYTHON", "JOBS", "TESTS", "BENCH"}  # variables of the Makefile itself


class Field(NamedTuple):
    """One option of a verb: the parameter that its object is, its declaration, type and default."""

    parameter: str
    name: str
    kind: Any
    default: Any
    about: str
    how: dict[str, Any]


def load_verb(name: str) -> Verb:
    """Import the function of a verb: pipeline.train_heads.train_heads; those of the cache share one module."""
    function = name.replace("-", "_")
    module = "cache" if name.startswith("cache-") else function
    verb: Verb = getattr(import_module(f"pipeline.{module}"), function)
    return verb


def fields_of(verb: Verb) -> Iterator[Field]:
    """Yield the options of a verb: the fields of all option objects that it takes."""
    hints = get_type_hints(verb, include_extras=True)
    hints.pop("return", None)
    for parameter, hint in hints.items():
        kind, *notes = get_args(hint) or (hint,)
        taking = notes[0] if notes else Taking()
        for field, default in leaves(kind):
            if not taking.names or field.name in taking.names:
                how = field.metadata["how"]
                about = field.metadata["help"]
                usual = taking.defaults.get(field.name, default)
                yield Field(parameter, field.name, _type_of(kind, field.name), usual, about, how)


def _type_of(kind: Any, name: str) -> Any:
    """Return the type of a field, of an option object or of one inside it."""
    hints = get_type_hints(kind)
    return hints[name] if name in hints else next(_type_of(h, name) for h in hints.values() if _has(h, name))


def _has(kind: Any, name: str) -> bool:
    return hasattr(kind, "__dataclass_fields__") and any(field.name == name for field, _ in leaves(kind))


def call(verb: Verb, values: dict[str, Any]) -> Any:
    """Call a verb with its options by their own names; those that are not given have the verb's defaults.

    A command that an error suggests is completed by what was typed: whoever raised it knows no data set.
    """
    hints = get_type_hints(verb, include_extras=True)
    hints.pop("return", None)
    own: dict[str, dict[str, Any]] = {parameter: {} for parameter in hints}
    given = {}
    for field in fields_of(verb):
        value = own[field.parameter][field.name] = values.pop(field.name, field.default)
        if value != field.default:
            given[field.name.upper()] = typed(value)
    if values:
        raise TypeError(f"{verb.__name__} takes no {', '.join(values)}")
    try:
        return verb(**{name: _built((get_args(hint) or (hint,))[0], own[name]) for name, hint in hints.items()})
    except FirnError as error:
        error.args = (completed(str(error), given),)
        raise


def completed(text: str, given: dict[str, str]) -> str:
    """Return a message whose suggested commands have the variables that were `given` and that their targets take."""

    def complete(match: re.Match[str]) -> str:
        targets = match["targets"].split()
        if not set(targets) <= VERBS.keys():
            return match[0]
        known = {field.name.upper() for target in targets for field in fields_of(load_verb(target))}
        there = set(re.findall(r"\b([A-Z_]+)=", match["given"]))
        lacking = [f"{n}={quoted(v)}" for n, v in given.items() if n in known - there - _OF_A_VERB]
        return " ".join([match[0], *lacking])

    return _COMMAND.sub(complete, text)


def flat(verb: Verb, given: frozenset[str] = frozenset()) -> Callable[..., None]:
    """Return a command that takes every option of a verb by itself, those `given` to make from the environment."""

    def command(**values: Any) -> None:
        show(call(verb, values))

    parameters = [_parameter(field, given) for field in fields_of(verb)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = verb.__doc__
    return command


def _parameter(field: Field, given: frozenset[str]) -> inspect.Parameter:
    variable = field.name.upper()
    flag = typer.Option(
        f"--{field.name.replace('_', '-')}",
        help=field.about,
        envvar=variable if variable in given else None,
        show_envvar=False,
        **field.how,
    )
    annotation: Any = Annotated[field.kind, flag]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _built(kind: Any, values: dict[str, Any]) -> Any:
    """Return an option object from the values of all fields in it and in the objects inside it."""
    own: dict[str, Any] = {}
    for name, field in kind.__dataclass_fields__.items():
        inner = field.default_factory
        if hasattr(inner, "__dataclass_fields__"):
            own[name] = _built(inner, values)
        elif name in values:
            own[name] = values[name]
    return kind(**own)


def show(result: Any) -> None:
    """Print the lines that a verb returned; an exit code beside them ends the program."""
    lines, code = result if isinstance(result, tuple) else (result, 0)
    typer.echo("\n".join(lines))
    if code:
        raise typer.Exit(code)


def check_given(name: str, given: frozenset[str], arguments: list[str]) -> None:
    """Raise FirnError for a variable given to make that no target takes, that is fixed there, or that is empty."""
    own = {field.name.upper(): field for field in fields_of(load_verb(name))}
    goals = os.environ.get("FIRN_GOALS", name).split()
    verbs = [goal for goal in goals if goal in VERBS] or [name]
    for variable in sorted(v for v in given if v not in MAKE_ONLY and not v.startswith("FIRN_")):
        if variable not in own:
            _check_taken(variable, verbs)
        elif f"--{variable.lower().replace('_', '-')}" in arguments:
            raise FirnError(f"make {' '.join(goals)} has its own {variable}=; leave {variable}= away")
        elif not os.environ.get(variable) and own[variable].default not in ("", None):
            raise FirnError(f"{variable}= is empty; leave it away for the default, {own[variable].default}")


def _check_taken(variable: str, verbs: list[str]) -> None:
    known = {field.name.upper() for verb in verbs for field in fields_of(load_verb(verb))}
    if variable in known:
        return
    close = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}=? " if close else ""
    raise FirnError(f"make {' '.join(verbs)} takes no {variable}=; {hint}It takes: {' '.join(sorted(known))}")


def build(arguments: list[str]) -> typer.Typer:
    """Return the command line; only the verb that was named is imported."""
    app = typer.Typer(
        help="Two-stage transfer learning for medical images: extract once, train heads in seconds, compare honestly.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    given = frozenset(os.environ.get("FIRN_GIVEN", "").split())
    named = arguments[0] if arguments else ""
    if named in VERBS:
        check_given(named, given, arguments)
    for name, about in VERBS.items():
        if name == named:
            app.command(name, short_help=about)(flat(load_verb(name), given))
        else:
            app.command(name, help=about)(_unread)
    return app


def _unread() -> None:
    """Stand for a verb that was not named."""


def run() -> int:
    """Run what was typed; return the exit code. Raises FirnError for a user's mistake."""
    code = build(sys.argv[1:])(standalone_mode=False)  # typer turns Ctrl-C into 130, older versions into Abort
    return code if isinstance(code, int) else 0
