"""A run: one head, or a fine-tuned network, trained on one view, with its predictions and the record of how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from features.cache.key import Key
from features.datasets.dataset import is_guess
from features.errors import CacheError
from features.options import DatasetOptions, FeatureOptions, make_command
from features.storage import artifacts_root, slug, write_whole
from features.version import firn_version
from models.finetuning.settings import FinetuneOptions
from models.heads import HEADS
from models.validation.predictions import Predictions, load_predictions, save_predictions

FINETUNED = "finetuned"  # what stands for the head in a run of a fine-tuned network
PREDICTIONS = "predictions.csv"
FILES = (PREDICTIONS, "head.json", "head.safetensors", "lightgbm.txt")  # of a run, besides networks
_RENAMED = {"pictures_per_second": "images_per_second", "thaw": "finetuning"}  # names of fields until November 2026


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds: the data, the features, the head, and what training it took."""

    dataset: str
    asked: str  # the data set as it was typed
    labels: str  # "classes", or the name of a coarser view of the labels
    classes: tuple[str, ...]
    protocol: str
    seed: int
    manifest: str  # digest of classes, ids, contents, labels, splits and groups
    grouped_by: str | None
    split_by: str
    note: str
    counts: Mapping[str, Mapping[str, int]]  # split -> class -> images
    groups: Mapping[str, int]  # split -> groups
    versions: Mapping[str, str]
    backbone: str  # several joined by +
    entry: str  # the folders of the cache entries, likewise
    keys: tuple[Key, ...]
    blocks: tuple[str, ...]
    asked_blocks: str
    pool: str
    view: str  # blocks and pooling in words
    head: str
    about: str
    chosen: Mapping[str, Any]  # what inner folds or early stopping chose
    folds: int
    repeats: int
    seconds: Mapping[str, float]  # oof, fit, predict
    features: int
    asked_with: Mapping[str, Any] | None = None  # root, target, positive, ..., where they were given
    asked_folds: int = 0  # FOLDS=; 0 where the protocol says
    asked_repeats: int = 0  # REPEATS=, likewise
    several: bool = False  # whether images have several findings each, which `classes` names
    identity: str = ""  # digest of all that the run depends on
    bases: tuple[str, ...] = ()  # of a stack: the folders of its runs
    nested: int = 0  # of a stack: of how many runs its weights for a fold come from models that had not seen it
    images_per_second: float | None = None  # of a fine-tuned network: gone through in training
    finetuning: Mapping[str, Any] | None = None  # of a fine-tuned network: its options and settings
    spread: Mapping[str, Any] | None = None  # over seeds, where there were several: `models.runs.seeds.spread`
    history: tuple[Any, ...] = ()  # of each training: the epochs, each epoch, loss, roc_auc, loss, seconds, images
    device: str = "cpu"  # on which the head was computed
    files: Mapping[str, str] | None = None  # sha256 of those of FILES that are there; None in a record of old
    firn: str = field(default_factory=firn_version)

    @property
    def data(self) -> DatasetOptions:
        """Return the options that load the data set again."""
        return DatasetOptions(self.asked, self.seed, **(self.asked_with or {}))

    @property
    def feature_options(self) -> FeatureOptions:
        """Return the options that extract the features again."""
        key = self.keys[0]
        return FeatureOptions(self.data, self.backbone, preprocess=key.preprocess_mode, precision=key.precision)

    @property
    def added(self) -> bool:
        """Return whether the run was added from Python: its head is none of Firn's, and only predictions are kept."""
        return self.head not in (*HEADS, FINETUNED)

    @property
    def networks(self) -> int:
        """Return how many networks a fine-tuned run is; 0 for a head, and where a record of old does not say."""
        asked = (self.finetuning or {}).get("networks")
        return int(asked is not None) if asked in (None, "all") else self.folds

    @property
    def partial(self) -> bool:
        """Return whether only some folds have a network, and images of the others no out-of-fold prediction."""
        return (self.finetuning or {}).get("networks", "mean") not in ("mean", "all")

    @property
    def root(self) -> Path:
        """Return the folder of all runs that are compared with this one."""
        return runs_root(self.dataset, *self.scheme)

    @property
    def scheme(self) -> tuple[str, str, int, int]:
        """Return labels, protocol, folds and repeats as they were asked for."""
        return self.labels, self.protocol, self.asked_folds, self.asked_repeats

    @property
    def positive(self) -> str | None:
        """Return the positive one of two classes; None for more."""
        return self.classes[1] if len(self.classes) == 2 and not self.several else None

    @property
    def positive_is_guess(self) -> bool:
        """Return whether neither a name nor the user says which of two classes is the positive one."""
        return not self.several and is_guess(self.classes) and not self.data.positive

    def to_json(self) -> dict[str, Any]:
        """Return what `run.json` holds; fields that say nothing of this run are left away."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        empty = [f.name for f in fields(self) if f.default is not MISSING and content[f.name] == f.default]
        content["keys"] = [asdict(key) for key in self.keys]
        return {name: value for name, value in content.items() if name not in empty}

    @classmethod
    def from_json(cls, content: Any) -> RunRecord | None:
        """Return the record in the content of a `run.json`; None for one of an older form."""
        try:
            known = {_RENAMED.get(name, name): value for name, value in content.items()}
            values = {f.name: known[f.name] for f in fields(cls) if f.name in known}
            values["keys"] = tuple(Key.from_json(json.dumps(key)) for key in values["keys"])
            values |= {n: tuple(values[n]) for n in ("classes", "blocks", "bases", "history") if n in values}
            return cls(**({"firn": ""} | values))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Run:
    """One line of the comparison."""

    folder: Path
    record: RunRecord
    predictions: Predictions

    @property
    def images_per_second(self) -> float:
        """Return how many images the trainings went through in a second; those of a head go through each once."""
        if self.record.images_per_second:
            return float(self.record.images_per_second)
        held, seconds = int((self.predictions.fold >= 0).sum()), self.record.seconds
        trained = held * (self.record.folds - 1) + held / self.record.repeats
        return trained / max(float(seconds["oof"] + seconds["fit"]), 1e-9)

    @property
    def name(self) -> str:
        """Return the run's name in tables: head, backbone and view, or what it combines."""
        if self.record.bases:
            return f"{self.record.head} of {self.record.view}"
        return f"{self.record.head} on {self.record.backbone} {self.record.view}"


def runs_root(dataset: str, labels: str = "classes", protocol: str = "split", folds: int = 0, repeats: int = 0) -> Path:
    """Return the folder of all runs of a data set under one view of its labels, one protocol and its folds."""
    parts = [dataset, *([labels] if labels != "classes" else []), *([protocol] if protocol != "split" else [])]
    parts += [f"{number}-{noun}" for number, noun in ((folds, "folds"), (repeats, "repeats")) if number]
    return artifacts_root() / "heads" / "-".join(slug(part) for part in parts)


def save_run(folder: Path, record: RunRecord, predictions: Predictions) -> Run:
    """Write predictions first and `run.json` last, with the digests of the others: a run with `run.json` is whole."""
    save_predictions(folder / PREDICTIONS, predictions, record.classes)
    record = replace(record, files={name: found for name in FILES if (found := _digest(folder / name))})
    write_whole(folder / "run.json", [json.dumps(record.to_json(), indent=1).encode()])
    return Run(folder, record, predictions)


def damaged(folder: Path, record: RunRecord, names: Sequence[str] = FILES) -> list[Path]:
    """Return the files of a run, of `names` alone, that are gone or not as they were written."""
    known = record.files or {}
    return [folder / name for name in names if name in known and _digest(folder / name) != known[name]]


def require_whole(folder: Path, record: RunRecord, names: Sequence[str] = FILES) -> None:
    """Raise CacheError where a file of a run, of `names` alone, is gone or not as it was written."""
    if files := damaged(folder, record, names):
        raise CacheError(f"{files[0]} is gone, damaged or edited since the run was saved; {_again(folder, record)}")


def _digest(path: Path) -> str:
    """Return the sha256 of a file, empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def remove_record(folder: Path) -> None:
    """Remove the `run.json` of a run that is about to be replaced: its files are of no whole run from here on."""
    (folder / "run.json").unlink(missing_ok=True)


def load_record(folder: Path) -> RunRecord | None:
    """Return the record in a folder, or None where there is no whole run, or one of an older form."""
    try:
        return RunRecord.from_json(json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError):
        return None


def load_run(folder: Path) -> Run:
    """Return a whole run. CacheError where it does not read."""
    record = load_record(folder)
    if record is None:
        raise CacheError(f"no whole run in {folder}; expected one with a run.json, below artifacts/heads")
    require_whole(folder, record, [PREDICTIONS])
    return Run(folder, record, load_predictions(folder / PREDICTIONS, record.classes, again=_again(folder, record)))


def _again(folder: Path, record: RunRecord) -> str:
    """Return how a run is made again whose files are damaged."""
    if record.added:
        return f"add it again by firn.add_run, or remove {folder}"
    # A record of old does not show the damage to training, but for a fine-tuned run, whose trainings are taken up; and
    # which heads a stack was to combine no command tells.
    noticed = record.finetuning is not None or (record.files is not None and not record.bases)
    return f"{'' if noticed else f'remove {folder} and '}run: {train_command(record)}"


def load_runs(
    dataset: str, labels: str = "classes", protocol: str = "split", folds: int = 0, repeats: int = 0
) -> list[Run]:
    """Return all whole runs of a data set, sorted by folder; those of an older form are passed over."""
    root = runs_root(dataset, labels, protocol, folds, repeats)
    folders = (path.parent for path in sorted(root.rglob("run.json")))
    return [load_run(folder) for folder in folders if load_record(folder) is not None]


def train_command(record: RunRecord) -> str:
    """Return the command that trains one run again, from features that are there."""
    if record.finetuning is not None:
        return finetune_command(record)
    view = {"heads": record.head, "blocks": record.asked_blocks, "pool": record.pool}
    return make_command(
        "train-heads", **data_of(record), **scheme_of(record), backbone=record.backbone, **view, **pixels_of(record)
    )


def extract_command(record: RunRecord, *maps: str) -> str:
    """Return the command that extracts a run's features again, and keeps the maps of some blocks."""
    return make_command(
        "extract", **data_of(record), backbone=record.backbone, **pixels_of(record), maps=" ".join(maps)
    )


def finetune_command(record: RunRecord) -> str:
    """Return the command that fine-tunes a network again, with every setting that was chosen."""
    known = dict(record.finetuning or {})
    names = {"batch": "batch_size"}
    how = {names.get(name, name): str(value) for name, value in known.items()}
    chosen = {name: how[name] for name in FinetuneOptions.__dataclass_fields__ if name in how}
    return make_command(
        "finetune",
        **data_of(record),
        **scheme_of(record),
        backbone=record.backbone,
        blocks=record.asked_blocks,
        seeds=len(record.spread["seeds"]) if record.spread else "",
        **chosen,
        **pixels_of(record),
    )


def data_of(record: RunRecord) -> dict[str, Any]:
    """Return the variables of a command that name a run's images."""
    return {"dataset": record.asked, **record.data.more}


def scheme_of(record: RunRecord) -> dict[str, Any]:
    """Return labels, protocol, folds and repeats where they are not the usual ones."""
    usual = {"labels": "classes", "protocol": "split", "folds": 0, "repeats": 0}
    return {name: v for (name, u), v in zip(usual.items(), record.scheme, strict=True) if v != u}


def pixels_of(record: RunRecord) -> dict[str, str]:
    """Return how images were prepared and computed with, and the seed."""
    key = record.keys[0]
    return {"preprocess": key.preprocess_mode, "precision": key.precision, "seed": str(record.seed)}
