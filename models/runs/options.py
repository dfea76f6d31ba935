"""What a user asks of runs: how they are trained and judged, and which of them are meant."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from features.backbones.registry import BACKBONES, architecture, domains, file_name
from features.backbones.weights import find
from features.cache.pack import is_pack
from features.datasets.findings import ONE, label_names
from features.errors import BadBundle, CacheError, FirnError, counted, quoted, unknown
from features.options import DatasetOptions, leaves, make_command, names_in, option
from features.progress import say
from features.views import choose_pool
from models.heads import HEADS, choose_heads
from models.predictor.archive import BUNDLE, is_bundle
from models.runs.compare import choose
from models.runs.current import current_runs, say_if_stale
from models.runs.record import FINETUNED, Run, load_record, load_run, load_runs
from models.validation.cross_validation import Protocol, choose_protocol


@dataclass(frozen=True)
class RunOptions:
    """Under which labels and protocol runs are trained and compared."""

    labels: str = option("classes", "classes, or a coarser view of them that the data set has (cervical: binary).")
    protocol: str = option("split", "split (the publisher's test images) or cv (repeated nested cross-validation).")
    folds: int = option(0, "Folds, each of whole groups; 0 is five, or as many as the rarest class has groups.", min=0)
    repeats: int = option(0, "How often folds are drawn; 0 is the protocol's number: split 1, cv 3.", min=0)

    def __post_init__(self) -> None:
        """Refuse a protocol that is in no table, and a single fold."""
        choose_protocol(self.protocol, self.folds, self.repeats)

    @property
    def rules(self) -> Protocol:
        """Return the protocol with its folds and repeats."""
        return choose_protocol(self.protocol, self.folds, self.repeats)

    @property
    def scheme(self) -> tuple[str, str, int, int]:
        """Return what `runs_root` tells runs apart by: only those of one scheme are compared."""
        return self.labels, self.protocol, self.folds, self.repeats


@dataclass(frozen=True)
class SeedOptions:
    """With how many seeds a run is trained."""

    seeds: int = option(1, "Train with SEED and those after it, so many; their spread is told.", min=1, max=1000)


RUN = tuple(each.name for each in fields(RunOptions))


@dataclass(frozen=True)
class HeadOptions:
    """Which heads, on which view of the features."""

    heads: str = option("all", "Heads separated by blanks, or all.")
    blocks: str = option("1", "Blocks of the view: names, a number of last ones, or all.")
    pool: str = option("avg", "avg, max or both, cls of a transformer; of cached maps: gem, grid2 or grid3.")

    def __post_init__(self) -> None:
        """Refuse names that are in no table."""
        choose_heads(self.heads), choose_pool(self.pool)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the heads."""
        return choose_heads(self.heads)

    @property
    def insist(self) -> bool:
        """Return whether heads were named, so that one which cannot run is an error."""
        return self.heads != "all"


def require_one_finding(run: Run) -> None:
    """Raise FirnError, with what to type, for a run of several findings per image."""
    if run.record.several:
        again = make_command("extract train-heads", run.record.data, labels=f"{ONE}{run.record.classes[0]}")
        raise FirnError(
            f"{run.name} is of {counted(len(run.record.classes), 'finding')} per image, "
            f"and this takes one at a time; run: {again}"
        )


@dataclass(frozen=True)
class ModelSelector:
    """Which runs are meant: a path, or those of a data set under one protocol."""

    model: str = option("", "A bundle (folder or .zip), or the folder of a run; empty is the run validation chooses.")
    data: DatasetOptions = field(default_factory=DatasetOptions)
    backbone: str = option("", "Backbones of which runs are taken; empty is any.")
    heads: str = option("", "Heads (or finetuned) of which runs are taken; empty is any.")
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        """Refuse a choice among runs beside the one that is named."""
        chosen = {"HEADS": self.heads, "BACKBONE": self.backbone}
        if self.model and (late := [name for name, value in chosen.items() if value]):
            raise FirnError(f"{self.model} is one model already, and {late[0]}= chooses among several; leave it away")

    def say_unused(self) -> None:
        """Say which options are not used because the one model that was named has its own."""
        asked = [(f, value) for part in (self.data, self.run) for f, value in leaves(part)]
        given = [f"{f.name.upper()}={quoted(str(value))}" for f, value in asked if value != f.default]
        if self.model and given:
            say(f"not used: {' '.join(given)}; {self.model} is one model already")

    @property
    def bundle(self) -> Path | None:
        """Return the bundle that was named; None where the path of a run, or none, was."""
        return Path(self.model) if self.model and is_bundle(Path(self.model)) else None

    def load(self, *, several: bool = False) -> Run:
        """Return the run in the folder that was named, or the one of best validation. Raises CacheError, BadBundle.

        `several` tells whether the caller knows runs of several findings per image; else FirnError for one.
        """
        if not self.model:
            return _kept(choose(self.load_all(several=several)))
        if self.bundle:
            raise BadBundle(f"{self.model} is a bundle, and this takes the folder of the run that it was made of")
        if load_record(Path(self.model)) is None:
            raise BadBundle(
                f"{self.model} is neither a bundle (a folder with a {BUNDLE}, or a .zip) nor the folder of a run "
                "(with a run.json, below artifacts/heads); or leave MODEL= away and name the DATASET="
            )
        run = _kept(load_run(Path(self.model)))
        if not several:
            require_one_finding(run)
        say_if_stale(run)
        return run

    def load_all(self, *, several: bool = False) -> list[Run]:
        """Return all runs of the data set, as it is now, that are meant. CacheError, with what to type, for none.

        `several` as in `load`.
        """
        dataset, backbones, heads = self.data.load(), names_in(self.backbone), names_in(self.heads)
        for kind, names, known in (
            ("labels", [self.run.labels], label_names(dataset)),
            ("head", heads, [*HEADS, FINETUNED]),
        ):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        every = load_runs(dataset.name, *self.run.scheme)
        runs = [run for run in every if not heads or run.record.head in heads]
        runs = [run for run in runs if not backbones or _made_of(run, backbones)]
        if not runs:
            _check_backbones(backbones)
            meant = f" that HEADS= and BACKBONE= mean, of {len(every)} that are there" if every else ""
            raise CacheError(f"no trained heads of {dataset.name} yet{meant}; run: {self.command()}")
        if not (current := current_runs(dataset, self.run.labels, runs)):
            raise CacheError(
                f"no run of {dataset.name} is of its images, labels and splits as they are now; run: {self.command()}"
            )
        if not several:
            require_one_finding(current[0])
        return current

    def command(self) -> str:
        """Return the command that extracts and trains what is meant; of a pack, which is extracted, that trains."""
        names = [name for name in names_in(self.heads) if name != FINETUNED]
        if self.heads and not names:
            return make_command("finetune", self.data, self.run, backbone=self.backbone)
        inputs, packed = {HEADS[name].input for name in names}, is_pack(self.data.dataset)
        more = {"heads": " ".join(names) if inputs != {"runs"} else "", "maps": "1" if "maps" in inputs else ""}
        if packed:
            return make_command("train-heads", self.data, self.run, backbone=self.backbone, heads=more["heads"])
        return make_command("extract train-heads", self.data, self.run, backbone=self.backbone, **more)


def _kept(run: Run) -> Run:
    """Return a run. BadBundle where it was added from Python, of which there are predictions and no model."""
    if run.record.added:
        raise BadBundle(
            f"{run.name} was added from Python: it is compared, and nothing is kept that could predict or be made "
            f"again; name heads of Firn's own, such as HEADS=logistic"
        )
    return run


def _check_backbones(terms: list[str]) -> None:
    """Raise UnknownName for a backbone that there is not, BadWeights for one that was not fine-tuned yet."""
    for name in {name for term in terms for name in term.split("+")}:
        if architecture(name) not in BACKBONES:
            from features.backbones.build import row  # imports torch

            row(name)
        if domains(name):
            find(name, "")


def _made_of(run: Run, backbones: list[str]) -> bool:
    """Return whether a run is of one of the terms, or of some of the backbones in them alone."""
    known = {name for term in backbones for name in term.split("+")}
    return run.record.backbone in backbones or all(
        name in known or file_name(name) in known for name in run.record.backbone.split("+")
    )
