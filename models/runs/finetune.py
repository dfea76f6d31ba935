"""From what a user typed to a training of a thawed network: the boundary, its cached views, the run's facts."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.backbones.build import truncated
from features.backbones.tails import IMAGES, boundary, load_tail
from features.cache.entry import open_entry
from features.errors import FirnError, unknown
from features.extraction.engine import fill
from features.images import Augmentation
from features.progress import say, shown
from features.request import Request
from features.storage import artifacts_root, slug
from features.streams import ImageStream, MapStream
from features.views import View
from models.finetuning.batches import Inputs
from models.finetuning.cross_validation import Crossfit
from models.finetuning.network import Thawed
from models.finetuning.settings import RECIPES, Settings
from models.finetuning.train import Epoch
from models.runs.features import Ask, Stage
from models.runs.record import runs_root
from models.validation.cross_validation import FOLDS

_FORMAT = 2  # raised when the same settings give other networks
FLIPS = {"none": {}, "mirror": {"flip": True}, "any": {"flip": True, "turns": True}}


@dataclass(frozen=True)
class Thaw:
    """What a user asked for, beyond data set, backbone and protocol."""

    blocks: str  # as it was typed
    settings: Settings
    views: int = 1
    flip: str = "none"  # a row of FLIPS

    def __post_init__(self) -> None:
        """Raise for what makes no sense."""
        if self.flip not in FLIPS:
            raise unknown("flip", self.flip, FLIPS)
        if self.views < 1:
            raise FirnError(f"expected VIEWS=1 or more, got {self.views}")
        if self.flip != "none" and self.views == 1:
            raise FirnError(f"FLIP={self.flip} needs views to show it in; add VIEWS=4")

    def described(self, blocks: Sequence[str]) -> str:
        """Return what is special about a run, in words: the blocks, the views, whatever is not the recipe's own."""
        row = RECIPES[self.settings.recipe]
        usual = {name: getattr(row, name, default) for name, default in Settings().as_dict().items()}
        kept = ("recipe", "seed", "precision")  # named otherwise, or in the cache key
        changed = {n: v for n, v in self.settings.as_dict().items() if n not in kept and v != usual[n]}
        words = [
            "+".join(blocks),
            *([self.settings.recipe] if self.settings.recipe != Settings().recipe else []),
            *([f"{self.views} views"] if self.views > 1 else []),
            *([f"flip {self.flip}"] if self.flip != "none" else []),
            *(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()),
        ]
        return ", ".join(words)


class Thawing:
    """One backbone on one data set, cut where it was asked for. Making one extracts what is missing."""

    def __init__(self, request: Request, ask: Ask, thaw: Thaw) -> None:
        self.request, self.ask, self.thaw = request, ask, thaw
        self.after = boundary(request.recipe, thaw.blocks)
        self.requests = [self._request(number) for number in range(thaw.views)]
        self._extract()
        self.stage = Stage([request.entry], ask)
        self.view: View = self.stage.view("logistic", "1", "avg")[1]
        self.blocks = self._blocks()
        self.described = thaw.described(self.blocks)

    def _blocks(self) -> list[str]:
        """Return what is thawed, in words: blocks, or from which module on."""
        blocks = list(self.request.recipe.blocks)
        if self.after == IMAGES:
            return ["all blocks"]
        return blocks[blocks.index(self.after) + 1 :] if self.after in blocks else [f"after {self.after}"]

    def _request(self, number: int) -> Request:
        """Return the request for the boundary's maps in one view; the first view is that of the heads."""
        own, recipe = self.request, self.request.recipe
        if number:
            recipe = replace(recipe, augmentation=Augmentation(number, **FLIPS[self.thaw.flip]))
        if self.after and (number or self.after not in recipe.blocks):
            recipe = truncated(recipe, self.after)
        key = recipe.key(preprocess=own.preprocess, precision=own.entry.key.precision, stored=own.entry.key.stored)
        return replace(own, recipe=recipe, entry=open_entry(own.dataset.name, key))

    def folder(self) -> Path:
        """Return the folder of the run."""
        root = runs_root(self.request.dataset.name, self.ask.labels, self.ask.protocol)
        return root / self.request.entry.key.folder() / "finetuned" / slug(self.described)

    def identity(self) -> str:
        """Return a digest of all that the run depends on."""
        keys = [request.entry.key.digest() for request in self.requests]
        ask = (self.ask.labels, self.ask.protocol, self.ask.seed)
        parts = [_FORMAT, self.stage.digest, keys, self.after, self.thaw.settings.as_dict(), ask, FOLDS]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @contextmanager
    def inputs(self) -> Iterator[Inputs]:
        """Give what is trained on, the rows in the order of the view."""
        if self.after == IMAGES:
            source, workers = self.request.dataset.source, os.cpu_count() or 1
            way = self.request.preprocess
            ids = self.view.ids.tolist()
            yield Inputs([ImageStream(source, ids, r.recipe, way, workers=workers) for r in self.requests])
            return
        streams = [MapStream(request.entry, self.after) for request in self.requests]
        try:
            yield Inputs(streams)
        finally:
            for stream in streams:
                stream.close()

    def _extract(self) -> None:
        """Extract what is missing, all views of an image in one decode, after saying how large the maps are."""
        maps = {request.entry.folder: (request, self._maps(request)) for request in (self.request, *self.requests)}
        wanted = maps.values() if self.after else [(self.request, ())]
        todo = [(r, m) for r, m in wanted if r.state(("pooled", *(f"maps/{block}" for block in m))).word != "ready"]
        if size := sum(self._bytes(request) for request, some in todo if some):
            root = artifacts_root()
            free = shutil.disk_usage(root if root.is_dir() else ".").free
            what = f"maps of {self.after} of {len(self.request.dataset):,} images in {len(todo)} views"
            say(f"extracting {what}: {size / 1e9:.2f} GB, {free / 1e9:.0f} GB are free")
            if size > free:
                raise FirnError(
                    f"{what} need {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free below {root}; "
                    f"set FIRN_ARTIFACTS to a larger disk, or take fewer VIEWS="
                )
        if todo:
            fill(todo)

    def _maps(self, request: Request) -> tuple[str, ...]:
        return (self.after,) if self.after in request.recipe.blocks else ()

    def _bytes(self, request: Request) -> int:
        """Return the bytes of the boundary's maps in one view."""
        item = int(np.dtype(request.entry.key.stored).itemsize)
        return len(request.dataset) * int(np.prod(request.recipe.blocks[self.after])) * item

    @contextmanager
    def crossfit(self, trainings: int) -> Iterator[Crossfit]:
        """Give everything that the trainings of the run share, with a bar for about so many of them."""
        settings, recipe = self.thaw.settings, self.request.recipe
        width, classes = list(recipe.blocks.values())[-1][0], int(self.view.y.max()) + 1
        with self.inputs() as inputs, shown(f"finetune {recipe.name} {self.described}", "batches") as progress:
            yield Crossfit(
                self.view,
                inputs,
                lambda: Thawed(load_tail(recipe, self.after), width, classes, seed=settings.seed),
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
        facts = self.stage.facts(self.view)
        return {
            "backbone": self.request.recipe.name,
            "weights": self.request.recipe.weights,
            "after": self.after,
            "keys": [request.entry.key.to_json() for request in self.requests],
            "settings": self.thaw.settings.as_dict(),
            "views": self.thaw.views,
            "flip": self.thaw.flip,
            **{name: facts[name] for name in ("dataset", "labels", "classes", "protocol", "manifest", "versions")},
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
