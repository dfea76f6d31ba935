"""Cached features of one or several backbones side by side -> runs: heads, predictions, how they came about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.backbones.registry import domains, file_name
from features.backbones.weights import finetuned_root
from features.cache.pack import Pack
from features.datasets.findings import findings_of, groups_with, label_matrix
from features.devices import memory
from features.errors import BadDataset, CacheError
from features.options import DatasetOptions, make_command, replaced
from features.progress import say, shown
from features.storage import slug
from features.views import (
    POOLS,
    Cached,
    View,
    choose_blocks,
    choose_pool,
    has_class_token,
    join,
    label_view,
    load_manifest,
    map_view,
    pooled_view,
    rows_view,
)
from models.finetuning.checkpoints import load_seen
from models.folds import naming
from models.heads import HEADS, make_head, save_head
from models.runs.current import class_names, manifest_digest
from models.runs.options import RunOptions
from models.runs.record import Run, RunRecord, damaged, load_record, load_run, runs_root, save_run
from models.runs.seeds import spread
from models.validation.cross_validation import Fitted, Protocol, fit, learned

_FORMAT = 2  # raised when a head's recipe changes, so that older runs are trained again

Chosen: TypeAlias = tuple[tuple[str, ...], ...]  # the blocks of each entry


class Stage:
    """Features of one or several entries of the same images; a view is read when a head first needs it."""

    def __init__(
        self,
        entries: Sequence[Cached],
        data: DatasetOptions,
        run: RunOptions,
        *,
        until: float = np.inf,
        device: str = "cpu",
    ) -> None:
        """Take the entries, how they were asked for, the `time.monotonic()` after which no fold is begun, the device.

        The device is where heads are computed that can use one; it changes no number by more than their tolerance.
        """
        self.entries, self.data, self.run, self.until, self.device = tuple(entries), data, run, until, device
        self.name = "+".join(entry.key.backbone for entry in entries)
        self._manifests = [load_manifest(entry) for entry in entries]
        self._classes, self._merged = self._labels()
        digests = {manifest_digest(m, class_names(m, run.labels)) for m in self._manifests}
        if len(digests) > 1:
            again = make_command("extract", data, backbone=self.name.replace("+", " "))
            raise CacheError(
                f"{self.name} were extracted from different images, labels or splits and cannot be joined; run: {again}"
            )
        self.digest = digests.pop()
        self._check_unseen()
        self._last: tuple[object, View] | None = None  # one view at a time: maps are large

    @property
    def several(self) -> bool:
        """Return whether images have several findings each, all of which are learned."""
        return self._merged.ndim == 2

    def _labels(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Return the classes and the new label of each old one; of all findings their names and a row of labels each.

        Findings that too few groups to learn from have, or have not, are left out by name.
        """
        manifest = self._manifests[0]
        names = findings_of(manifest.about)
        if not names or self.run.labels != "classes":
            return label_view(manifest, self.run.labels)
        rows = label_matrix(manifest.about["classes"])
        rules = self.run.rules
        learns = learned(np.char.decode(manifest.splits, "utf-8"), rules)
        matrix, groups = rows[manifest.labels[learns]], manifest.groups[learns]
        enough = np.minimum(*(groups_with(matrix == side, groups) for side in (0, 1))) >= rules.folds
        few = f"fewer than {rules.folds} groups to learn from with it, or without"
        if not enough.any():
            raise BadDataset(f"each finding of {manifest.about['dataset']} has {few}; add images")
        if not enough.all():
            left = ", ".join(name for name, there in zip(names, enough, strict=True) if not there)
            say(f"left out, for {few}: {left}")
        return tuple(name for name, there in zip(names, enough, strict=True) if there), rows[:, enough]

    def _check_unseen(self) -> None:
        """Raise CacheError for a backbone that was fine-tuned on some of these very images: it has seen their labels.

        Images are compared by content; a backbone of an older form, which does not list them, by the set's name.
        """
        name, mine = str(self._manifests[0].about["dataset"]), _short(self._manifests[0].sha256)
        for backbone in (entry.key.backbone for entry in self.entries):
            if not domains(backbone):
                continue
            seen = load_seen(finetuned_root() / f"{file_name(backbone)}.safetensors")
            both = len(mine & seen) if seen else len(mine) * (name in domains(backbone))
            if both:
                raise CacheError(
                    f"{backbone} was fine-tuned on {both:,} of the {len(mine):,} images of {name} and has seen their "
                    f"labels: scores on them would mean nothing; compare by: {make_command('finetune', self.data)}"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes under the view of the labels."""
        return self._classes

    def seen(self, view: View) -> set[str]:
        """Return short digests of the images of a view that a network learns from under the protocol."""
        learns = view.ids[learned(view.splits, self.run.rules)]
        ids = np.char.decode(self._manifests[0].ids, "utf-8")
        return _short(self._manifests[0].sha256[np.isin(ids, learns)])

    def train(
        self, name: str, blocks: str = "1", pool: str = "avg", *, insist: bool = True, seeds: int = 1
    ) -> Path | None:
        """Train one head unless its run is there; return its folder, None where it cannot run on what was extracted.

        `insist` makes an error of the latter. With several `seeds` the spread over them is added. Raises OutOfTime.
        """
        if (found := self._choose(name, blocks, pool, insist)) is None:
            return None
        chosen, described = found
        folder = self.folder(described, name)
        identity = self._identity(name, chosen, described)
        if not lacks_seeds(folder, identity, seeds):
            return folder
        view = self._view(name, chosen, pool)
        if not isinstance(view.X, np.ndarray) and not HEADS[name].on_disk:
            self._too_large(name, view, insist)
            return None
        if not is_current(folder, identity):
            asked = {"asked_blocks": blocks, "pool": pool, "view": described, "identity": identity}
            self._train(name, view, folder, blocks=tuple(b for some in chosen for b in some), **asked)
        if seeds > 1:
            self._add_spread(load_run(folder), view, seeds)
        return folder

    def _train(self, name: str, seen: View, folder: Path, **asked: Any) -> None:
        """Train one head and save its run."""
        fit = self._fitted(name, seen, asked["view"], self.data.seed)
        save_head(folder, name, fit.head)
        save_run(folder, self.record(seen, **asked, **facts_of(name, seen, fit)), fit.predictions)

    def _fitted(self, name: str, view: View, described: str, seed: int) -> Fitted:
        """Fit a head with a seed, which is also that of the folds where the head draws nothing at random."""
        what = f"{name} on {self.name} {described}" + (f", seed {seed}" if seed != self.data.seed else "")
        folds = self.data.seed if HEADS[name].random else seed
        how: Any = {"protocol": self.run.rules, "until": self.until, "device": self.device}
        with naming(self.classes, self._manifests[0].about["grouped_by"]):
            return fitted(name, view, what, seed=seed, folds=folds, **how)

    def _add_spread(self, run: Run, view: View, seeds: int) -> None:
        """Train a run with the seeds after its own and record how far its scores spread."""
        name, first = run.record.head, self.data.seed
        more = [self._fitted(name, view, run.record.view, first + i).predictions for i in range(1, seeds)]
        told = spread("head" if HEADS[name].random else "folds", first, [run.predictions, *more])
        save_run(run.folder, replace(run.record, spread=told), run.predictions)

    def lacks(self, name: str, blocks: str, pool: str, *, insist: bool, seeds: int = 1) -> bool:
        """Tell whether a head can run on what was extracted and its run is not there; see `train` of the rest."""
        if (found := self._choose(name, blocks, pool, insist)) is None:
            return False
        chosen, described = found
        return lacks_seeds(self.folder(described, name), self._identity(name, chosen, described), seeds)

    def view(self, name: str, blocks: str, pool: str) -> tuple[str, View]:
        """Return what a head sees, in words and in numbers. CacheError where it cannot run on what was extracted.

        FirnError for several findings per image, of which a caller of this knows one alone.
        """
        label_view(self._manifests[0], self.run.labels)
        if (found := self._choose(name, blocks, pool, insist=True)) is None:
            raise CacheError(f"{name} needs feature maps of one backbone, and {self.name} is several")
        return f"{self.name} {found[1]}", self._view(name, found[0], pool)

    def _choose(self, name: str, blocks: str, pool: str, insist: bool) -> tuple[Chosen, str] | None:
        """Return the blocks of each entry that a head sees, and the view in words; None, and a line, for none."""
        if not self.knows(name, insist=insist):
            return None
        of_maps = HEADS[name].input == "maps"
        chosen = self._map_blocks(insist) if of_maps else self._blocks(blocks)
        if chosen:
            return chosen, f"{'+'.join('+'.join(some) for some in chosen)} {'maps' if of_maps else pool}"
        entry = self.entries[0]
        how = f"; {self._again(entry, entry.key.blocks[-1])}" if len(self.entries) == 1 else " of one backbone"
        say(f"{name} on {self.name} is left out: it needs feature maps{how}")
        return None

    def knows(self, name: str, *, insist: bool) -> bool:
        """Tell whether a head can learn these labels; say, or raise where it was asked for by name, that it cannot."""
        if not self.several or HEADS[name].findings:
            return True
        if insist:
            make_head(name, findings=True)
        say(f"{name} is left out: it knows one finding at a time, LABELS=finding:{self._classes[0]}")
        return False

    def folder(self, described: str, name: str) -> Path:
        """Return the folder of a run."""
        dataset = str(self._manifests[0].about["dataset"])
        return runs_root(dataset, *self.run.scheme) / self._entry_name() / slug(described) / name

    def maps(self) -> bool:
        """Return whether maps of the last block of every entry are cached."""
        pairs = zip(self.entries, self._manifests, strict=True)
        return all(f"maps/{entry.key.blocks[-1]}" in manifest.parts for entry, manifest in pairs)

    def pools(self) -> list[str]:
        """Return the poolings that every entry can give."""
        tokens, maps = all(map(has_class_token, self.entries)), self.maps()
        return [name for name, pool in POOLS.items() if (tokens or "cls" not in pool.cached) and (maps or pool.cached)]

    def _too_large(self, name: str, view: View, insist: bool) -> None:
        """Say, or raise where it was asked for by name, that a head needs features in memory."""
        n, d = view.X.shape
        able = " ".join(head for head, row in HEADS.items() if row.on_disk)
        why = f"{n:,} x {d:,} features exceed a quarter of the memory"
        if insist:
            raise CacheError(f'{name} on {self.name} needs its features in memory, and {why}; add HEADS="{able}"')
        say(f"{name} on {self.name} is left out: {why}; {able} read them from the disk")

    def _again(self, entry: Cached, block: str) -> str:
        """Return how the maps of a block come in: the command, or of a pack who has the images for it."""
        key = entry.key
        if isinstance(entry, Pack):
            return f"pack it with MAPS={block} where its images are"
        how = {"backbone": key.backbone, "preprocess": key.preprocess_mode, "precision": key.precision}
        return f"run: {make_command('extract', self.data, maps=block, **how)}"

    def _entry_name(self) -> str:
        return "+".join(entry.key.folder() for entry in self.entries)

    def _blocks(self, wanted: str) -> Chosen:
        return tuple(choose_blocks(entry.key.blocks, wanted) for entry in self.entries)

    def _map_blocks(self, insist: bool) -> Chosen:
        """Return the last block whose maps are cached; without any, an error for a head that was asked for by name."""
        if len(self.entries) > 1:
            return ()
        (entry,), (manifest,) = self.entries, self._manifests
        cached = [block for block in entry.key.blocks if f"maps/{block}" in manifest.parts]
        if not cached and insist:
            block = entry.key.blocks[-1]
            raise CacheError(f"no feature maps at {entry.folder}; {self._again(entry, block)}")
        return ((cached[-1],),) if cached else ()

    def _view(self, name: str, blocks: Chosen, pool: str) -> View:
        of_maps = HEADS[name].input == "maps"
        wanted = (of_maps, blocks, "" if of_maps else pool)
        if self._last is None or self._last[0] != wanted:
            self._last = None  # the old one makes room before the new one comes
            read = _maps if of_maps else partial(_pooled, pool=pool)
            views = [read(entry, some) for entry, some in zip(self.entries, blocks, strict=True)]
            view = join([view._replace(X=view.X[:]) for view in views]) if len(views) > 1 else views[0]
            view = view._replace(y=self._merged[view.y])
            unlabelled = not self.several and bool((view.y < 0).any())
            self._last = (wanted, self._checked(view.take(view.y >= 0) if unlabelled else view))
        return self._last[1]

    def _checked(self, view: View) -> View:
        """Return a view in which every class can be learned. BadDataset names one of fewer groups than are needed."""
        rules = self.run.rules
        to_learn = learned(view.splits, rules)
        unit = self._manifests[0].about["grouped_by"] or "image"
        for label, name in enumerate(() if self.several else self._classes):
            own = to_learn & (view.y == label)
            groups = len(np.unique(view.groups[own]))
            if rules.exact and 2 <= groups < rules.folds:
                most = replaced(self.run, folds=groups)
                raise BadDataset(
                    f"FOLDS={rules.folds} needs as many groups ({unit}) of each class, and class {name} has {groups} "
                    f"to learn from; run: {make_command('train-heads', self.data, most, backbone=self.name)}"
                )
            if groups < 2:
                raise BadDataset(
                    f"class {name} has {groups} {unit}{'s' * (groups != 1)} to learn from, and two are needed: "
                    f"{int(own.sum()):,} of the {len(own):,} images of {self._manifests[0].about['dataset']}"
                )
        return view

    def _identity(self, name: str, blocks: object, described: str) -> str:
        """Return a digest of all that a run depends on; a run with another one is out of date."""
        run, rules = self.run, self.run.rules
        parts = [_FORMAT, name, blocks, described, run.labels, run.protocol, self.data.seed, rules.folds]
        parts += [rules.repeats] if run.repeats else []
        keys = [entry.key.digest() for entry in self.entries]
        return hashlib.sha256(f"{parts}{self.digest}{keys}".encode()).hexdigest()

    def record(self, view_: View, **own: Any) -> RunRecord:
        """Return the record of a run on these features; `own` are the fields that are not of the features alone."""
        about = self._manifests[0].about
        return RunRecord(
            **{name: about[name] for name in ("dataset", "grouped_by", "split_by", "note")},
            asked=self.data.dataset,
            asked_with=self.data.more or None,
            labels=self.run.labels,
            classes=self._classes,
            several=self.several,
            protocol=self.run.protocol,
            asked_folds=self.run.folds,
            asked_repeats=self.run.repeats,
            seed=self.data.seed,
            manifest=self.digest,
            counts=_counts(view_, self._classes),
            groups={str(s): len(np.unique(view_.groups[view_.splits == s])) for s in np.unique(view_.splits)},
            versions={**about["versions"], **_versions()},
            backbone=self.name,
            entry=self._entry_name(),
            keys=tuple(entry.key for entry in self.entries),
            **own,
        )


def _short(sha256: NDArray[np.bytes_]) -> set[str]:
    return {digest.decode()[:16] for digest in sha256.tolist()}


def _counts(view: View, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the images of each class in each split."""
    splits = np.unique(view.splits)
    own = [view.y[:, k] == 1 if view.y.ndim == 2 else view.y == k for k in range(len(classes))]
    return {
        str(s): {c: int((at & (view.splits == s)).sum()) for c, at in zip(classes, own, strict=True)} for s in splits
    }


def _maps(entry: Cached, blocks: Sequence[str]) -> View:
    return map_view(entry, blocks[-1])


def _pooled(entry: Cached, blocks: Sequence[str], pool: str) -> View:
    """Return pooled features, on the disk where they would take more than a quarter of the machine's memory."""
    if choose_pool(pool).cached:
        view = rows_view(entry, blocks, pool)
        if view.X.shape[0] * view.X.shape[1] * 4 > memory() / 4:
            return view
    return pooled_view(entry, blocks, pool)


def is_current(folder: Path, identity: str) -> bool:
    """Return whether a whole run of that identity is there, each of its files as it was written."""
    record = load_record(folder)
    return record is not None and record.identity == identity and not damaged(folder, record)


def lacks_seeds(folder: Path, identity: str, seeds: int) -> bool:
    """Return whether no whole run of that identity is there, or none that tells the spread over so many seeds."""
    record = load_record(folder)
    if record is None or not is_current(folder, identity):
        return True
    return seeds > 1 and (record.spread is None or len(record.spread["seeds"]) < seeds)


def fitted(
    name: str, view: View, what: str, *, seed: int, folds: int, protocol: Protocol, until: float, device: str
) -> Fitted:
    """Fit a head of a seed in the folds of another, with a progress bar that says `what`. Raises OutOfTime."""
    with shown(what, "fits") as progress:
        make = partial(make_head, name, seed=seed, findings=view.y.ndim == 2, device=device)
        return fit(make, [view], protocol, seed=folds, progress=progress, until=until)


def facts_of(name: str, view: View, found: Fitted, *, about: str = "") -> dict[str, Any]:
    """Return the fields of a record that a fit adds; `about` is said of a head that is in no table."""
    repeats = choose_repeats(found)
    return {
        "head": name,
        "about": about or HEADS[name].about,
        "chosen": dict(found.head.chosen_),
        "folds": (int(found.predictions.fold.max()) + 1) // repeats,
        "repeats": repeats,
        "seconds": dict(found.seconds),
        "features": int(np.prod(view.X.shape[1:2])),
        "device": found.head.device_,
    }


def choose_repeats(found: Fitted) -> int:
    """Return how often the images to learn from were predicted out of fold."""
    held = found.predictions.part(test=False)
    return len(held.ids) // len(np.unique(held.ids))


def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "lightgbm")}
