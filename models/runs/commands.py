"""The commands of make that make runs and their comparison again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from features.options import make_command
from features.views import POOLS
from models.finetuning.settings import FinetuneOptions
from models.runs.record import RunRecord

K = TypeVar("K")
_RUN = {"labels": "classes", "protocol": "split"}  # what is left away where it is usual


def commands(records: Sequence[RunRecord], seed: int) -> list[str]:
    """Return the commands that make the same runs and the same comparison again."""
    first = records[0]
    run = _run(first)
    single = [record for record in records if not record.bases and record.finetuning is None]
    stacks = [
        make_command(
            "train-heads",
            **_data(first),
            **run,
            backbone=r.backbone.replace("+", " "),
            heads=r.head,
            seed=str(r.seed),
        )
        for r in records
        if r.bases
    ]
    return [
        *_extractions(single),
        *_trainings(single),
        *dict.fromkeys(finetune_command(r) for r in records if r.finetuning is not None),
        *stacks,
        make_command("compare", **_data(first), **run, seed=str(seed)),
    ]


def train_command(record: RunRecord) -> str:
    """Return the command that trains one run again, from features that are there."""
    if record.finetuning is not None:
        return finetune_command(record)
    view = {"heads": record.head, "blocks": record.asked_blocks, "pool": record.pool}
    return make_command(
        "train-heads", **_data(record), **_run(record), backbone=record.backbone, **view, **_pixels(record)
    )


def extract_command(record: RunRecord, *maps: str) -> str:
    """Return the command that extracts a run's features again, and keeps the maps of some blocks."""
    return make_command("extract", **_data(record), backbone=record.backbone, **_pixels(record), maps=" ".join(maps))


def finetune_command(record: RunRecord) -> str:
    """Return the command that fine-tunes a network again, with every setting that was chosen."""
    known = dict(record.finetuning or {})
    names = {"batch": "batch_size"}
    how = {names.get(name, name): str(value) for name, value in known.items()}
    chosen = {name: how[name] for name in FinetuneOptions.__dataclass_fields__ if name in how}
    return make_command(
        "finetune",
        **_data(record),
        **_run(record),
        backbone=record.backbone,
        blocks=record.asked_blocks,
        **chosen,
        **_pixels(record),
    )


def _extractions(records: Sequence[RunRecord]) -> list[str]:
    """Return one command for all backbones that were extracted in the same way."""
    maps: dict[str, list[str]] = {}
    for r in filter(_on_maps, records):
        maps.setdefault(r.entry, []).extend(b for b in r.blocks if b not in maps.get(r.entry, ()))
    ways = _joined(((tuple(_pixels(r).items()), " ".join(maps.get(r.entry, ()))), r.backbone) for r in records)
    data = _data(records[0]) if records else {}
    return [
        make_command("extract", **data, backbone=names.replace("+", " "), **dict(way), maps=kept)
        for (way, kept), names in ways.items()
    ]


def _trainings(records: Sequence[RunRecord]) -> list[str]:
    """Return one command for all heads and backbones that were trained on the same kind of view."""
    heads = _joined(((r.backbone, _view(r)), r.head) for r in records)
    every = _joined(((names, view), backbone) for (backbone, view), names in heads.items())
    data, run = (_data(records[0]), _run(records[0])) if records else ({}, {})
    return [
        make_command("train-heads", **data, **run, backbone=backbones, heads=names, **dict(view))
        for (names, view), backbones in every.items()
    ]


def _data(record: RunRecord) -> dict[str, str]:
    return {"dataset": record.asked, **record.data.more}


def _run(record: RunRecord) -> dict[str, str]:
    return {name: value for name, usual in _RUN.items() if (value := getattr(record, name)) != usual}


def _on_maps(record: RunRecord) -> bool:
    return bool(record.view.endswith(" maps") or POOLS[record.pool].of_maps)


def _view(record: RunRecord) -> tuple[tuple[str, str], ...]:
    return (("blocks", record.asked_blocks), ("pool", record.pool), *_pixels(record).items())


def _pixels(record: RunRecord) -> dict[str, str]:
    key = record.keys[0]
    return {"preprocess": key.preprocess_mode, "precision": key.precision, "seed": str(record.seed)}


def _joined(pairs: Iterable[tuple[K, str]]) -> dict[K, str]:
    """Return for each key the different names that came with it, sorted, separated by blanks."""
    names: dict[K, dict[str, None]] = {}
    for key, name in pairs:
        names.setdefault(key, {})[name] = None
    return {key: " ".join(sorted(given)) for key, given in names.items()}
