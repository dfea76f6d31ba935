"""A backbone that is fine-tuned, whole or its last blocks, on a data set: from what was asked for to a saved run."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from features.backbones.build import IMAGES, boundary, load_backbone, load_tail, truncated
from features.backbones.weights import finetuned_root
from features.cache.entry import open_entry
from features.datasets import Dataset
from features.datasets.findings import label_names, one_finding
from features.devices import checked, cores, fitting
from features.errors import CacheError, FirnError, unknown
from features.extraction.engine import fill
from features.images import Augmentation
from features.options import ExtractOptions, FeatureOptions
from features.progress import duration, say, shown
from features.request import Request, resolve
from features.storage import artifacts_root, slug
from features.views import View, map_rows
from models.finetuning.augmentation import Pixels
from models.finetuning.batches import Inputs
from models.finetuning.checkpoints import is_network, load_network, load_seen, save_network
from models.finetuning.cross_validation import (
    CLASSIFIER,
    NETWORK,
    WATCHED,
    Crossfit,
    Fit,
    Fitted,
    crossfit,
    fit_once,
    keep_networks,
    network_files,
)
from models.finetuning.images import DecodedImages
from models.finetuning.network import FinetunedNetwork
from models.finetuning.settings import FLIPS, RECIPES, FinetuneOptions
from models.finetuning.train import Epoch, best_epoch
from models.folds import naming
from models.runs.features import Stage, is_current, lacks_seeds
from models.runs.options import RunOptions
from models.runs.record import FINETUNED, load_run, remove_record, runs_root, save_run
from models.runs.seeds import spread
from models.validation.cross_validation import learned

_FORMAT = 3  # raised when the same settings give other networks


def finetuned(
    features: FeatureOptions, options: FinetuneOptions, run: RunOptions, *, seeds: int = 1
) -> Iterator[FinetuneJob]:
    """Yield each backbone of a data set with its run trained and saved, unless it is there already.

    With several `seeds` the spread over them is added: of trainings in the same folds.
    """
    for job in _jobs(features, options, run):
        if not (is_current(job.folder(), job.identity()) and _is_whole(job.folder())):
            with job.crossfit() as training:
                found = crossfit(training, run.rules)
                remove_record(job.folder())  # before its networks go
                keep_networks(training, found.names)
            _save(job, found)
        if lacks_seeds(job.folder(), job.identity(), seeds):
            _add_spread(job, seeds)
        yield job


def _is_whole(folder: Path) -> bool:
    """Tell whether the predictions of a run can be read and its networks are there."""
    try:
        files = network_files(folder, load_run(folder).record.networks)
    except CacheError:
        return False
    return bool(files) and all(map(is_network, files))


def _add_spread(job: FinetuneJob, seeds: int) -> None:
    """Train with the seeds after a run's own and record how far its scores spread; their networks are not kept."""
    run, first = load_run(job.folder()), job.data.seed
    predictions = [run.predictions]
    for seed in range(first + 1, first + seeds):
        with job.crossfit(seed=seed) as training:
            predictions.append(crossfit(training, job.run.rules).predictions)
    save_run(run.folder, replace(run.record, spread=spread("network", first, predictions)), run.predictions)


def finetuned_once(
    features: FeatureOptions, options: FinetuneOptions, run: RunOptions
) -> tuple[FinetuneJob, Fit, View]:
    """Fine-tune one backbone on all images to learn from, without folds; return its logits of the others too."""
    (job,) = _jobs(features, replace(options, networks="all"), run)
    train = learned(job.view.splits, run.rules)
    with job.crossfit() as training:
        fit = fit_once(training, np.flatnonzero(train), np.flatnonzero(~train))
    return job, fit, job.view.take(~train)


def _jobs(features: FeatureOptions, options: FinetuneOptions, run: RunOptions) -> Iterator[FinetuneJob]:
    """Yield the backbones of a data set, each ready to be fine-tuned."""
    for request in resolve(features.data.load(), features):
        checked(request.device)
        yield FinetuneJob(request, options, run)


class FinetuneJob:
    """One backbone on one data set, cut where it was asked for. Making one extracts what is missing."""

    def __init__(self, request: Request, options: FinetuneOptions, run: RunOptions) -> None:
        self.request, self.options, self.run = request, options, run
        self.data = request.options.data
        self.settings = options.settings(precision=request.entry.key.precision, seed=self.data.seed)
        self.thawed = boundary(request.spec, options.blocks)  # after it everything is trained
        # Where images are varied, what comes before is computed anew each time; else its maps come from the cache.
        self.after = IMAGES if self.settings.augment != "none" else self.thawed
        self.requests = [self._request(number) for number in range(options.views)]
        _require_labels(request.dataset, run.labels)
        self._extract()
        self.stage = Stage([request.entry], self.data, run)
        self.view: View = self.stage.view("logistic", "1", "avg")[1]
        self.blocks = self._blocks()
        self.described = options.described(self.blocks, self.settings)

    def _blocks(self) -> list[str]:
        """Return what is fine-tuned, in words: blocks, or from which module on."""
        blocks = list(self.request.spec.blocks)
        if self.thawed == IMAGES:
            return ["all blocks"]
        return blocks[blocks.index(self.thawed) + 1 :] if self.thawed in blocks else [f"after {self.thawed}"]

    def _request(self, number: int) -> Request:
        """Return the request for the boundary's maps in one view; the first view is that of the heads."""
        own, spec = self.request, self.request.spec
        if number:
            spec = replace(spec, augmentation=Augmentation(number, **FLIPS[self.options.flip or "none"]))
        if self.after and (number or self.after not in spec.blocks):
            spec = truncated(spec, self.after)
        key = spec.key(preprocess=own.preprocess, precision=own.entry.key.precision, stored=own.entry.key.stored)
        return replace(own, spec=spec, entry=open_entry(own.dataset.name, key))

    def _labelled(self, rows: View) -> View:
        """Return the rows that the view has: those with a label."""
        return rows.take(np.isin(rows.ids, self.view.ids))

    def folder(self, networks: str = "") -> Path:
        """Return the folder of the run, or of the one that is otherwise the same but for its `networks`."""
        root = runs_root(self.request.dataset.name, *self.run.scheme)
        options = replace(self.options, networks=networks or self.options.networks)
        described = options.described(self.blocks, self.settings)
        return root / self.request.entry.key.folder() / "finetuned" / slug(described)

    def identity(self) -> str:
        """Return a digest of all that the run depends on."""
        return hashlib.sha256(f"{self.training_identity()}{self.options.networks}".encode()).hexdigest()

    def training_identity(self, seed: int | None = None) -> str:
        """Return a digest of all that a training, of another seed too, depends on besides the images it learns from."""
        settings = self.settings if seed is None else replace(self.settings, seed=seed)
        keys = [request.entry.key.digest() for request in self.requests]
        ask = (self.run.labels, self.run.protocol, self.data.seed)
        parts = [_FORMAT, self.stage.digest, keys, self.thawed, self.after, settings.as_dict(), ask]
        parts += [self.run.rules.folds]
        parts += [self.run.rules.repeats] if self.run.repeats else []
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @contextmanager
    def inputs(self) -> Iterator[Inputs]:
        """Give what is trained on, the rows in the order of the view."""
        if self.after == IMAGES:
            yield self._images
            return
        every = (map_rows(request.entry, self.after) for request in self.requests)
        streams = [rows if len(rows.ids) == len(self.view.ids) else self._labelled(rows) for rows in every]
        try:
            yield Inputs(streams)
        finally:
            for stream in streams:
                stream.X.close()

    @cached_property
    def _images(self) -> Inputs:
        """Return the images as they are trained on, decoded once for all trainings."""
        spec = self.request.spec
        return Inputs([self._decoded(request) for request in self.requests], Pixels(spec.mean, spec.std))

    def _decoded(self, request: Request) -> DecodedImages:
        """Return the decoded images of a view."""
        source, ids, workers = self.request.dataset.source, self.view.ids.tolist(), cores()
        with shown("decode") as progress:
            return DecodedImages(source, ids, request.spec, request.preprocess, workers=workers, progress=progress)

    def _extract(self) -> None:
        """Extract what is missing, all views of an image in one decode, after saying how large the maps are."""
        maps = {request.entry.folder: (request, self._maps(request)) for request in (self.request, *self.requests)}
        wanted = maps.values() if self.after else [(self.request, ())]
        todo = [(r, m) for r, m in wanted if r.state(("pooled", *(f"maps/{block}" for block in m))).word != "ready"]
        if size := sum(self._bytes(request) for request, some in todo if some):
            root = artifacts_root()
            free = shutil.disk_usage(root if root.is_dir() else ".").free
            what = f"maps of {self.after} of {len(self.request.dataset):,} images, views: {len(todo)}"
            say(f"extracting {what}: {size / 1e9:.2f} GB, {free / 1e9:.0f} GB are free")
            if size > free:
                raise FirnError(
                    f"{what} need {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free below {root}; "
                    f"set FIRN_ARTIFACTS to a larger disk, or take fewer VIEWS="
                )
        if todo:
            fill(todo, ExtractOptions())

    def _maps(self, request: Request) -> tuple[str, ...]:
        return (self.after,) if self.after in request.spec.blocks else ()

    def _bytes(self, request: Request) -> int:
        """Return the bytes of the boundary's maps in one view."""
        item = int(np.dtype(request.entry.key.stored).itemsize)
        return len(request.dataset) * int(np.prod(request.spec.blocks[self.after])) * item

    def _naming(self) -> AbstractContextManager[None]:
        return naming(self.stage.classes, self.request.dataset.grouped_by)

    @contextmanager
    def crossfit(self, *, seed: int | None = None) -> Iterator[Crossfit]:
        """Give what all trainings of the run, or of another seed, have in common."""
        settings = self.settings if seed is None else replace(self.settings, seed=seed)
        what = f"finetune {self.request.spec.name} {self.described}" + (f", seed {seed}" if seed is not None else "")
        fewer = f"BATCH_SIZE={max(2, settings.batch // 2)} or DEVICE=cpu"
        with (
            self._naming(),
            self.inputs() as inputs,
            shown(what, "batches", at_most=True) as progress,
            fitting(f"a training with BATCH_SIZE={settings.batch}", fewer),
        ):
            yield Crossfit(
                self.view,
                inputs,
                partial(self.network, settings.seed),
                settings,
                self.data.seed,
                self.options.networks,
                self.request.device,
                self.folder(),
                self.folder("mean") / ("fits" if seed is None else f"fits-seed-{seed}"),
                self.training_identity(seed),
                self.about(),
                _tell,
                progress,
                self._expect,
            )

    def network(self, seed: int) -> FinetunedNetwork:
        """Return a new network with the pretrained weights; what is not trained of it is frozen."""
        spec, tail = self.request.spec, load_tail(self.request.spec, self.after)
        frozen: set[str] = set()
        if self.after != self.thawed:
            frozen = {*tail.state_dict()} - {*load_tail(spec, self.thawed).state_dict()}
        width, classes = list(spec.blocks.values())[-1][0], int(self.view.y.max()) + 1
        return FinetunedNetwork(tail, width, classes, seed=seed, frozen=frozen)

    def recorded(self) -> dict[str, Any]:
        """Return the options and settings that make the same again."""
        asked = {"views": self.options.views, "networks": self.options.networks, **self.settings.as_dict()}
        return asked | ({"flip": self.options.flip} if self.options.views > 1 else {})

    def _expect(self, trainings: int, rate: float) -> None:
        """Say beforehand how long it takes, from a few steps that were timed."""
        rules, epochs = self.run.rules, self.settings.epochs
        images = int(learned(self.view.splits, rules).sum())
        share = (1 - 1 / rules.folds) * (1 - 1 / WATCHED)  # of the images a training of a fold learns from
        left = duration(trainings * epochs * share * images / rate)
        say(
            f"about {left} on this machine at most: {trainings} x {epochs} epochs of {share * images:,.0f} images, "
            f"{rate:,.0f} images/s; stopped at any moment, the same command goes on from the last epoch"
        )

    def about(self) -> dict[str, Any]:
        """Return the whole configuration, kept with the network."""
        return {
            "backbone": self.request.spec.name,
            "weights": self.request.spec.weights,
            "after": self.after,
            "keys": [request.entry.key.to_json() for request in self.requests],
            "settings": self.settings.as_dict(),
            "views": self.options.views,
            "networks": self.options.networks,
            "dataset": self.request.dataset.name,
            "labels": self.run.labels,
            "protocol": self.run.protocol,
            "manifest": self.stage.digest,
        }


def _require_labels(dataset: Dataset, labels: str) -> None:
    """Raise FirnError for labels that no network learns, before hours of extraction."""
    if labels not in label_names(dataset):
        raise unknown("labels", labels, label_names(dataset))
    if dataset.findings:
        one_finding({"dataset": dataset.name, "findings": dataset.findings, "classes": dataset.classes}, labels)


def _tell(label: str, epoch: Epoch, left: float) -> None:
    rate = epoch.images / epoch.seconds
    say(
        f"{label}, epoch {epoch.epoch}: loss {epoch.loss:.4f}, validation ROC AUC {epoch.roc_auc:.4f}, "
        f"log loss {epoch.watched_loss:.4f}, {epoch.seconds:.1f} s, {rate:,.0f} images/s, "
        f"about {duration(left)} left at most"
    )


def _save(job: FinetuneJob, found: Fitted) -> None:
    """Save the run: predictions, facts, and the history of every training."""
    histories = [[list(map(_finite, epoch)) for epoch in history] for history in found.histories]
    trained = [epoch for history in found.histories for epoch in history]
    held = found.predictions.part(test=False)
    repeats = len(held.ids) // len(np.unique(held.ids))
    record = job.stage.record(
        job.view,
        blocks=tuple(job.blocks),
        asked_blocks=job.options.blocks,
        pool="avg",
        view=job.described,
        head=FINETUNED,
        about=f"fine-tuned {'+'.join(job.blocks)}: {RECIPES[job.settings.recipe].about}",
        chosen={"epochs": [best_epoch(history) + 1 for history in found.histories]},
        folds=(int(found.predictions.fold.max()) + 1) // repeats,
        repeats=repeats,
        seconds=found.seconds,
        features=int(job.view.X.shape[1]),
        images_per_second=sum(e.images for e in trained) / sum(e.seconds for e in trained),
        finetuning=job.recorded(),
        history=tuple(histories),
        identity=job.identity(),
    )
    save_run(job.folder(), record, found.predictions)


def _finite(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def write_backbone(job: FinetuneJob) -> str:
    """Write the fine-tuned network as a backbone of its own, for `BACKBONE=<name>@<data set>`; return that name."""
    spec = job.request.spec
    tensors, about = load_network(job.folder() / NETWORK)
    tail = {name: tensor for name, tensor in tensors.items() if not name.startswith(CLASSIFIER)}
    name = f"{spec.name}@{job.request.dataset.name}"
    seen = sorted(job.stage.seen(job.view) | load_seen(spec.file))
    save_network(
        finetuned_root() / f"{name}.safetensors", load_backbone(spec).state_dict() | tail, about | {"seen": seen}
    )
    return name
