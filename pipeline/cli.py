"""The command line: each verb's option objects as flags, or as the variables that make was given."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from features.errors import PROGRAM, FirnError, quoted, unknown
from features.options import Taking, leaves, typed
from features.progress import say
from features.version import firn_version

Verb = Callable[..., Any]

VERBS = {  # in the order of the flow: what `make` and --help say of each
    "doctor": "what is there, what the network will see, time, disk, and a verdict",
    "extract": "stage one: images -> cached features",
    "audit": "duplicates, leaks, doubtful labels, odd images",
    "train-heads": "stage two: cached features -> heads and their predictions",
    "finetune": "train the last blocks too, from cached maps, or the whole network on images",
    "transfer": "does a detour over a source domain help?",
    "compare": "all runs of a data set -> ranked table, results, HTML page",
    "report": "the page with images of errors, class activation maps and the audit",
    "figures": "for a paper: figures, tables for LaTeX, the methods with every number",
    "explain": "hits and misses under class activation maps",
    "learning-curve": "would more patients help?",
    "bundle": "a run -> one folder or .zip that predicts on any machine",
    "predict": "new images -> predictions.csv",
    "validate": "a bundle on a labelled set from elsewhere -> scores at its own thresholds, page",
    "export": "a bundle -> ONNX or torch, with a model card",
    "reproduce": "a recorded run made again, and a verdict",
    "cache-ls": "every cache entry: bytes, state, age",
    "cache-verify": "read every byte of the cache (or of a pack), list what is damaged",
    "cache-repair": "compute again just what is damaged",
    "cache-why": "why features are not ready",
    "cache-gc": "list what a data set needs no more; YES=1 removes it",
    "cache-pack": "features -> one HDF5 file for a colleague",
}
NEXT = {  # what follows on success; bundle, cache-pack and transfer say it themselves, with what they made
    "doctor": "extract",
    "extract": "train-heads",
    "audit": "report",
    "train-heads": "compare",
    "finetune": "compare",
    "compare": "report",
    "report": "bundle",
    "figures": "bundle",
    "explain": "bundle",
    "learning-curve": "compare",
    "cache-repair": "train-heads",
}
_COMMAND = re.compile(
    rf"\b{PROGRAM} (?P<targets>[a-z]+(?:[ -][a-z]+)*)(?P<given>(?: [A-Z_]+=(?:'[^']*'|\"[^\"]*\"|[^\s'\";,)])+)*)"
)
_OF_A_VERB = {"OUT", "MODEL", "RUN", "YES", "BUDGET", "A", "B"}  # are about what one verb does or makes
_KINDS = ((bool, "1 or 0"), (int, "a whole number"), (float, "a number"))
MAKE_ONLY = {"PYTHON", "BASE_PYTHON", "JOBS", "TESTS", "BENCH"}  # variables of the Makefile itself
CONFIG = "CONFIG"  # the variable that all verbs take: a file with others
_CONFIG_HELP = "A TOML file with variables, such as EPOCHS = 5, of this and of other commands; what is typed wins."


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
    verb: Verb = getattr(import_module(f"{__package__}.{module}"), function)
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
    given, left = given_to(verb, values), dict(values)
    for field in fields_of(verb):
        own[field.parameter][field.name] = left.pop(field.name, field.default)
    if left:
        raise TypeError(f"{verb.__name__} takes no {', '.join(left)}")
    try:
        return verb(**{name: _built((get_args(hint) or (hint,))[0], own[name]) for name, hint in hints.items()})
    except FirnError as error:
        error.args = (completed(str(error), given),)
        raise


def given_to(verb: Verb, values: dict[str, Any]) -> dict[str, str]:
    """Return the variables that have another value than the usual one, as they are typed."""
    every = [(field, values.get(field.name, field.default)) for field in fields_of(verb)]
    of_all = [(f, value) for f, value in every if f.name != "target" or not f.default]  # TARGET= of transfer is a set
    return {field.name.upper(): typed(value) for field, value in of_all if value != field.default}


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


def run_verb(name: str, **options: Any) -> list[str]:
    """Run a command from Python, with its options by their names in lower case; return the lines that it prints.

    Options are what the command's variables are (docs/reference.md); those that are left away have the command's
    defaults. Raises UnknownName for what is no command or no option of it, and what the command raises.
    """
    if name not in VERBS:
        raise unknown("command", name, VERBS)
    verb = load_verb(name)
    kinds = {field.name: field.kind for field in fields_of(verb)}
    if strange := sorted(options.keys() - kinds.keys()):
        raise unknown(f"option of {name}", strange[0], kinds)
    result = call(verb, {n: typed(value) if kinds[n] is str else value for n, value in options.items()})
    return list(result[0] if isinstance(result, tuple) else result or [])


def flat(verb: Verb, given: frozenset[str] = frozenset(), last: bool = True) -> Callable[..., None]:
    """Return a command that takes every option of a verb by itself, those `given` to make from the environment.

    The `last` of several says what to type next.
    """

    def command(config: str, **values: Any) -> None:
        show(call(verb, values))
        if last:
            _say_next(verb.__name__.replace("_", "-"), given_to(verb, values))

    parameters = [_parameter(field, given) for field in [*fields_of(verb), _CONFIG_FIELD]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = verb.__doc__
    return command


_CONFIG_FIELD = Field("", CONFIG.lower(), str, "", _CONFIG_HELP, {})  # read by pipeline.arguments


def _parameter(field: Field, given: frozenset[str]) -> inspect.Parameter:
    variable = field.name.upper()
    flag = typer.Option(
        flag_of(field),
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
    if lines:
        typer.echo("\n".join(lines))
    if code:
        raise typer.Exit(code)


def _say_next(name: str, given: dict[str, str]) -> None:
    """Say what to type next, on stderr, unless make has more to do."""
    if name in NEXT and os.environ.get("FIRN_GOALS", name).split()[-1:] == [name]:
        say(completed(f"next: {PROGRAM} {NEXT[name]}", given))


def check_given(name: str, given: frozenset[str], arguments: list[str]) -> None:
    """Raise FirnError for a variable given to make that no target takes, that is fixed there, or that is empty."""
    own = {field.name.upper(): field for field in fields_of(load_verb(name))}
    if "FIRN_GOALS" in os.environ:
        for variable in sorted((own.keys() & os.environ.keys()) - given):
            say(f"{variable}= of the environment is not used; write it behind make: {variable}={os.environ[variable]}")
    goals = os.environ.get("FIRN_GOALS", name).split()
    verbs = [goal for goal in goals if goal in VERBS] or [name]
    for variable in sorted(v for v in given if v not in MAKE_ONLY and not v.startswith("FIRN_")):
        if variable not in own:
            check_taken(variable, verbs)
        elif f"--{variable.lower().replace('_', '-')}" in arguments:
            raise FirnError(f"make {' '.join(goals)} has its own {variable}=; leave {variable}= away")
        elif not os.environ.get(variable):
            check_filled(own[variable])


def check_filled(field: Field) -> None:
    """Raise FirnError for a variable that is empty where it must not be."""
    if field.default not in ("", None):
        raise FirnError(f"{field.name.upper()}= is empty; leave it away for the default, {field.default}")


def check_taken(variable: str, verbs: Iterable[str]) -> None:
    """Raise FirnError, with the nearest name, for a variable that none of the verbs takes."""
    known = {CONFIG, *(field.name.upper() for verb in verbs for field in fields_of(load_verb(verb)))}
    if variable in known:
        return
    close = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}=?)" if close else ""
    raise FirnError(f"{PROGRAM} {' '.join(verbs)} takes no {variable}={hint}; it takes: {' '.join(sorted(known))}")


def behind(flag: str, words: list[str]) -> str:
    """Return the value of a flag among the words typed; empty without."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def flag_of(field: Field) -> str:
    """Return the flag of an option."""
    return f"--{field.name.replace('_', '-')}"


def build(arguments: list[str], *, last: bool = True) -> typer.Typer:
    """Return the command line; only the verb that was named is imported."""
    app = typer.Typer(
        help="Two-stage transfer learning for medical images: extract once, train heads in seconds, compare honestly.",
        no_args_is_help=True,
        add_completion=PROGRAM == "firn",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    given = frozenset(os.environ.get("FIRN_GIVEN", "").split())
    named = arguments[0] if arguments else ""
    if named in VERBS:
        check_given(named, given, arguments)
    elif named and not named.startswith("-"):
        raise unknown("command", named, VERBS)
    for name, about in VERBS.items():
        if name == named:
            app.command(name, short_help=about)(flat(load_verb(name), given, last))
        else:
            app.command(name, help=about)(_unread)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"firn {firn_version()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which Firn this is.")
    ] = False,
) -> None:
    """Stand for what goes before the verb."""


def _unread() -> None:
    """Stand for a verb that was not named."""


def run_typed(arguments: list[str], *, last: bool = True) -> int:
    """Run one verb with flags, or say what there is; return the exit code. Raises FirnError for a user's mistake."""
    app = build(arguments or _to_complete(), last=last)
    try:  # typer turns Ctrl-C into 130, older versions into Abort
        code = app(arguments, standalone_mode=False, prog_name=PROGRAM if PROGRAM == "firn" else None)
    except Exception as error:
        raise _explained(error, arguments) from None
    return code if isinstance(code, int) else 0


def _to_complete() -> list[str]:
    """Return the words behind the program that a shell wants to have completed."""
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")  # of bash, of others
    return [word for word in words.split()[1:2] if word in VERBS]


def _explained(error: Exception, arguments: list[str]) -> Exception:
    """Return a FirnError for what typer says of wrong usage, with what came; any other error as it is."""
    if not hasattr(error, "format_message") or not arguments:
        return error
    asked = getattr(getattr(error, "param", None), "name", None)
    field = next((f for f in fields_of(load_verb(arguments[0])) if f.name == asked), None)
    if field is None:
        return FirnError(f"{error.format_message().rstrip('.')}; see: python -m pipeline {arguments[0]} --help")
    kind = next(words for kind, words in _KINDS if kind == field.kind or kind in get_args(field.kind))
    low, high = field.how.get("min"), field.how.get("max")
    bounds = "" if low is None else f" from {low} up" if high is None else f" from {low} to {high}"
    return FirnError(f"expected {field.name.upper()}= to be {kind}{bounds}, got {_came(field, arguments)!r}")


def _came(field: Field, arguments: list[str]) -> str:
    """Return what was typed for an option, behind its flag or as a variable of make."""
    return behind(flag_of(field), arguments) or os.environ.get(field.name.upper(), "")
