"""What a user asks for, declared once: each field of an option object is a flag, a variable of make and a default.

The command line turns every field into `--its-name` and the variable `ITS_NAME`; `make_command` writes the same
variables back, so that a command which is suggested is the one that was typed.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from features.backbones.registry import sized
from features.errors import command, unquoted

if TYPE_CHECKING:
    from features.datasets.dataset import Dataset

DEFAULT_BACKBONE = "resnet18"
T = TypeVar("T")


def option(default: Any, about: str, **how: Any) -> Any:
    """Declare a field of an option object: its default, its help, and keywords of `typer.Option` such as `min`."""
    return dataclasses.field(default=default, metadata={"help": about, "how": how})


class Taking:
    """In an annotation: which fields of an option object a command takes, all without names; defaults of its own."""

    def __init__(self, *names: str, **defaults: Any) -> None:
        self.names, self.defaults = names, defaults


@dataclass(frozen=True)
class DatasetOptions:
    """Which images, labels and groups."""

    dataset: str = option(
        "pneumonia", "A name of the table, or a path: class folders, CSV, .npz, DICOM with CSV, pack (.h5)."
    )
    seed: int = option(0, "Seed of splits, folds and heads.", min=0, max=2**32 - 1)
    root: str = option("", "The folder that the paths of a table are relative to; empty is the table's own.")
    target: str = option("", "The finding or column that a table is about; folder: its folders are the classes.")
    positive: str = option("", "Which of two classes is the positive one; empty is the finding, by its name.")
    test: float = option(0.2, "Share of each class drawn as test, by group, where no split came.", min=0.05, max=0.5)
    task: str = option("", "classes, or findings: several per image; empty is what the labels show.")
    uncertain: str = option("ignore", "What a finding labelled -1 counts as: ignore, positive or negative.")

    @property
    def more(self) -> dict[str, Any]:
        """Return what was given besides the data set and the seed."""
        apart = ("dataset", "seed")
        return {f.name: value for f, value in leaves(self) if value != f.default and f.name not in apart}

    def load(self) -> Dataset:
        """Return the data set without opening an image. Raises UnknownName, BadDataset."""
        from features.datasets import load_dataset

        return load_dataset(self.dataset, seed=self.seed, **self.more)


DATA = tuple(field.name for field in dataclasses.fields(DatasetOptions))


@dataclass(frozen=True)
class FeatureOptions:
    """Which features: data set, backbones, weights, preprocessing and arithmetic."""

    data: DatasetOptions = dataclasses.field(default_factory=DatasetOptions)
    backbone: str = option("", "Backbones separated by blanks, a+b for a joined view; empty is resnet18.")
    preprocess: str = option("", "squash, pad (whole image) or crop (torchvision's centre crop); empty is squash.")
    precision: str = option("auto", "auto, float32, tf32 (a GPU), bfloat16 or float16: the arithmetic of the network.")
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:1, of networks and heads; auto is a GPU, for heads where it pays."
    )
    weights: str = option("", "A weights file of your own (.pth or .safetensors) for the backbone.")
    size: int = option(
        0, "Side of the images that backbones see, in pixels; 0 is that of their weights.", min=0, max=4096
    )

    def __post_init__(self) -> None:
        """Put a size that was given into the names of the backbones, resnet18@320, where all else finds it."""
        if self.size:
            names = names_in(self.backbone) or [DEFAULT_BACKBONE]
            object.__setattr__(self, "backbone", " ".join(sized(name, self.size) for name in names))
            object.__setattr__(self, "size", 0)

    @property
    def terms(self) -> list[str]:
        """Return the views that are asked for: names of backbones, or several joined by +; [""] for the default."""
        return names_in(self.backbone) or [""]


@dataclass(frozen=True)
class ExtractOptions:
    """How an extraction runs, and which feature maps it keeps; none of it changes a number."""

    maps: str = option("", "Blocks whose feature maps are kept too, by name, by number of last ones, or all.")
    batch_size: int = option(0, "Images per forward pass; 0 chooses.", min=0)
    workers: int = option(0, "Threads that read (on a GPU as many decode, or processes); 0 is one per core.", min=0)
    strict: bool = option(False, "Stop at the first unreadable image.")
    engine: str = option("local", "local, or ray: all GPUs or cores of a machine or a cluster ($RAY_ADDRESS).")


def names_in(text: str) -> list[str]:
    """Return the names (or names joined by +) in a list separated by blanks or commas, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def leaves(options: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield each option of an option object, or of its class, with its value; those of objects inside it in place."""
    for field in dataclasses.fields(options):
        inner = field.default_factory
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner if isinstance(options, type) else getattr(options, field.name))
        else:
            yield field, field.default if isinstance(options, type) else getattr(options, field.name)


def make_command(targets: str, *options: Any, **also: Any) -> str:
    """Return the command of make that asks for the same: every value that is not the default, quoted for a shell.

    `also` are further variables, which win over the options; an empty one is left away.
    """
    given = {f.name: value for each in options for f, value in leaves(each) if value != f.default} | also
    return command(targets, **{n.upper(): typed(v) for n, v in given.items() if v not in ("", None, False)})


def in_a_file(commands: Sequence[str], path: str) -> tuple[str, list[str]]:
    """Return what commands have in common as a CONFIG= file at `path`, in TOML, and the commands that read it.

    Commands are those of `make_command`; variables that some of them lack stay where they are.
    """
    each = [dict(word.split("=", 1) for word in shlex.split(line) if "=" in word) for line in commands]
    common = {name: value for name, value in each[0].items() if all(one.get(name) == value for one in each)}
    shorter = []
    for line, given in zip(commands, each, strict=True):
        targets = [word for word in shlex.split(line) if "=" not in word]
        left = [f"{name}={shlex.quote(value)}" for name, value in given.items() if name not in common]
        shorter.append(" ".join([*targets, f"CONFIG={path}", *left]))
    lines = [f"{name} = {json.dumps(unquoted(value), ensure_ascii=False)}" for name, value in common.items()]
    return "\n".join(lines), shorter


def typed(value: Any) -> str:
    """Return a value as a user types it: a number with all its digits, 5.0 as 5."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "1" if value is True else str(value)


def replaced(options: T, **changes: Any) -> T:
    """Return an option object with other values, in it or in the option objects inside it."""
    own: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if field.name in changes:
            own[field.name] = changes[field.name]
        elif dataclasses.is_dataclass(value):
            own[field.name] = replaced(value, **changes)
    return dataclasses.replace(options, **own)  # type: ignore[type-var]
