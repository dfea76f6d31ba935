"""A backbone whose last blocks are fine-tuned on a data set: from what was asked for to a saved run."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.backbones.build import IMAGES, boundary, load_backbone, load_tail, truncated
from features.backbones.weights import finetuned_root
from features.cache.entry import open_entry
from features.devices import checked
from features.errors import FirnError
from features.extraction.engine import fill
from features.extraction.prefetch import ImageStream
from features.images import Augmentation
from features.options import ExtractOptions, FeatureOptions
from features.progress import say, shown
from features.request import Request, resolve
from features.storage import artifacts_root, slug
from features.views import View, map_rows
from models.finetuning.batches import Inputs
from models.finetuning.checkpoints import load_network, load_seen, save_network
from models.finetuning.cross_validation import CLASSIFIER, NETWORK, Crossfit, Fit, Fitted, crossfit, fit_all
from models.finetuning.network import FinetunedNetwork
from models.finetuning.settings import FLIPS, RECIPES, FinetuneOptions
from models.finetuning.train import Epoch, best_epoch
from models.runs.features import Stage, is_current
from models.runs.options import RunOptions
from models.runs.record import FINETUNED, runs_root, save_run
from models.validation.cross_validation import learned

_FORMAT = 2  # raised when the same settings give other networks


def finetuned(features: FeatureOptions, options: FinetuneOptions, run: RunOptions) -> Iterator[FinetuneJob]:
    """Yield each backbone of a data set with its run trained and saved, unless it is there already."""
    rules = run.rules
    for job in _jobs(features, options, run):
        if not is_current(job.folder(), job.identity()):
            with job.crossfit(rules.repeats * rules.folds + 1) as training:
                _save(job, crossfit(training, rules))
        yield job


def finetuned_once(
    features: FeatureOptions, options: FinetuneOptions, run: RunOptions
) -> tuple[FinetuneJob, Fit, View]:
    """Fine-tune one backbone on all images to learn from, without folds; return its probabilities of the others too."""
    (job,) = _jobs(features, options, run)
    train = learned(job.view.splits, run.rules)
    with job.crossfit(1) as training:
        fit = fit_all(training, np.flatnonzero(train), np.flatnonzero(~train))
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
        self.after = boundary(request.spec, options.blocks)
        self.requests = [self._request(number) for number in range(options.views)]
        self._extract()
        self.stage = Stage([request.entry], self.data, run)
        self.view: View = self.stage.view("logistic", "1", "avg")[1]
        self.blocks = self._blocks()
        self.described = options.described(self.blocks, self.settings)

    def _blocks(self) -> list[str]:
        """Return what is fine-tuned, in words: blocks, or from which module on."""
        blocks = list(self.request.spec.blocks)
        if self.after == IMAGES:
            return ["all blocks"]
        return blocks[blocks.index(self.after) + 1 :] if self.after in blocks else [f"after {self.after}"]

    def _request(self, number: int) -> Request:
        """Return the request for the boundary's maps in one view; the first view is that of the heads."""
        own, spec = self.request, self.request.spec
        if number:
            spec = replace(spec, augmentation=Augmentation(number, **FLIPS[self.options.flip]))
        if self.after and (number or self.after not in spec.blocks):
            spec = truncated(spec, self.after)
        key = spec.key(preprocess=own.preprocess, precision=own.entry.key.precision, stored=own.entry.key.stored)
        return replace(own, spec=spec, entry=open_entry(own.dataset.name, key))

    def folder(self) -> Path:
        """Return the folder of the run."""
        root = runs_root(self.request.dataset.name, *self.run.scheme)
        return root / self.request.entry.key.folder() / "finetuned" / slug(self.described)

    def identity(self) -> str:
        """Return a digest of all that the run depends on."""
        keys = [request.entry.key.digest() for request in self.requests]
        ask = (self.run.labels, self.run.protocol, self.data.seed)
        parts = [_FORMAT, self.stage.digest, keys, self.after, self.settings.as_dict(), ask, self.run.rules.folds]
        parts += [self.run.rules.repeats] if self.run.repeats else []
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @contextmanager
    def inputs(self) -> Iterator[Inputs]:
        """Give what is trained on, the rows in the order of the view."""
        if self.after == IMAGES:
            source, workers = self.request.dataset.source, os.cpu_count() or 1
            way = self.request.preprocess
            ids = self.view.ids.tolist()
            yield Inputs([ImageStream(source, ids, r.spec, way, workers=workers) for r in self.requests])
            return
        streams = [map_rows(request.entry, self.after) for request in self.requests]
        try:
            yield Inputs(streams)
        finally:
            for stream in streams:
                stream.X.close()

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

    @contextmanager
    def crossfit(self, trainings: int) -> Iterator[Crossfit]:
        """Give everything that the trainings of the run share, with a bar for about so many of them."""
        settings, spec = self.settings, self.request.spec
        width, classes = list(spec.blocks.values())[-1][0], int(self.view.y.max()) + 1
        with self.inputs() as inputs, shown(f"finetune {spec.name} {self.described}", "batches") as progress:
            yield Crossfit(
                self.view,
                inputs,
                lambda: FinetunedNetwork(load_tail(spec, self.after), width, classes, seed=settings.seed),
                settings,
                self.request.device,
                self.folder(),
                self.identity(),
                self.about(),
                _tell,
                _counted(progress, trainings * settings.epochs),
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
            "flip": self.options.flip,
            "dataset": self.request.dataset.name,
            "labels": self.run.labels,
            "protocol": self.run.protocol,
            "manifest": self.stage.digest,
        }


def _tell(label: str, epoch: Epoch) -> None:
    rate = epoch.images / epoch.seconds
    say(
        f"{label}, epoch {epoch.epoch}: loss {epoch.loss:.4f}, validation ROC AUC {epoch.roc_auc:.4f}, "
        f"log loss {epoch.watched_loss:.4f}, {epoch.seconds:.1f} s, {rate:,.0f} images/s"
    )


def _counted(progress: Callable[[int, int], None], epochs: int) -> Callable[[int, int], None]:
    """Return what counts batches of epochs of about equal length; early stopping leaves some undone."""
    seen = 0

    def step(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        progress(min(seen, epochs * total), epochs * total)

    return step


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
        finetuning={"views": job.options.views, "flip": job.options.flip, **job.settings.as_dict()},
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
