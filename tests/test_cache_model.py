"""Random lives of a data set against a plain dictionary: what the cache shows is always what the images are."""

from __future__ import annotations

import csv
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

import features.cache.content
import features.extraction.loop
from features.backbones import load_spec
from features.cache import Digests, Entry, open_entry
from features.cache.entry import cache_root
from features.cache.verify import verify
from features.datasets import Dataset, load_dataset
from features.errors import CacheError
from features.extraction.job import Job, Outcome
from features.extraction.loop import extract
from features.images import pixels
from features.views import load_manifest, pooled_view

SPEC = load_spec("squeezenet1_1")
BLOCKS = list(SPEC.blocks)


class Drawn(NamedTuple):
    """One line of the model."""

    content: str  # sha256 of the file
    label: str
    split: str
    group: str


def features_of(image: np.ndarray) -> np.ndarray:
    """Return made-up features of decoded pixels (C, S, S): a pure function of each of them."""
    digest = xxhash.xxh3_128_digest(np.ascontiguousarray(image).data)
    return np.frombuffer(digest, np.uint8)[:4].astype(np.float16)


class Fold:
    """Stands in for the network, which is not under test here: as fast as hashing."""

    def __init__(self, *_: object, batch_size: int, **__: object) -> None:
        self.batch_size = batch_size

    def __call__(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the made-up features under the names that the backbone's would have."""
        X = torch.from_numpy(np.stack([features_of(image) for image in images]))
        return {f"pooled/{block}/{kind}": X + i for i, block in enumerate(BLOCKS) for kind in ("avg", "max")}


class Life(RuleBasedStateMachine):
    """A folder of images and its CSV, changed at random; `model` says what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("FIRN_ARTIFACTS", str(self.root / "artifacts"))
        self.folder = self.root / "home" / "set"
        self.model: dict[str, Drawn] = {}
        self.wanted: dict[str, np.ndarray] = {}  # content -> features
        self.stored: set[str] = set()  # contents whose rows are committed
        self.settled = False  # the last thing that happened was a whole extraction
        self.homes = 0

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.patch.undo()
        shutil.rmtree(self.root)

    # The world ---------------------------------------------------------------------------------------------------

    def draw(self, name: str, seed: int) -> str:
        """Draw one image; return the sha256 of its file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (6 + seed, 9), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        self.wanted[content] = features_of(pixels(path.read_bytes(), SPEC.geometry("squash"), name=name))
        return content

    def write(self) -> None:
        """Write the CSV anew."""
        self.settled = False
        with (self.folder / "images.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "split", "group"])
            table.writerows([name, p.label, p.split, p.group] for name, p in self.model.items())

    def one(self, number: int) -> str:
        """Choose an image that may change; the first four keep both classes in train and test."""
        return sorted(name for name in self.model if not name.startswith("first"))[number % (len(self.model) - 4)]

    @initialize()
    def start(self) -> None:
        """Start with four images."""
        for i, (label, split) in enumerate((s, t) for s in ("cat", "dog") for t in ("train", "test")):
            name = f"first/{i}.png"
            self.model[name] = Drawn(self.draw(name, 100 + i), label, split, f"g{i}")
        self.write()

    @rule(name=st.integers(0, 99), seed=st.integers(0, 20), dog=st.booleans(), split=st.sampled_from(["train", "test"]))
    def add(self, name: int, seed: int, dog: bool, split: str) -> None:
        """Add an image, or change one; its content may be that of another."""
        place = f"more/{name:02d}.png"
        self.model[place] = Drawn(self.draw(place, seed), "dog" if dog else "cat", split, f"g{seed % 3}")
        self.write()

    @precondition(lambda self: len(self.model) > 4)
    @rule(number=st.integers(0, 99), seed=st.integers(0, 20))
    def change(self, number: int, seed: int) -> None:
        """Change the content of an image."""
        name = self.one(number)
        self.model[name] = self.model[name]._replace(content=self.draw(name, seed))
        self.write()

    @precondition(lambda self: len(self.model) > 4)
    @rule(number=st.integers(0, 99), to=st.integers(0, 99))
    def rename(self, number: int, to: int) -> None:
        """Rename an image, also over another, so that its place in the order changes."""
        name, target = self.one(number), f"aaa/{to:02d}.png"
        (self.folder / target).parent.mkdir(exist_ok=True)
        (self.folder / name).rename(self.folder / target)
        self.model[target] = self.model.pop(name)
        self.write()

    @precondition(lambda self: len(self.model) > 4)
    @rule(number=st.integers(0, 99))
    def remove(self, number: int) -> None:
        """Remove an image."""
        name = self.one(number)
        (self.folder / name).unlink()
        del self.model[name]
        self.write()

    @precondition(lambda self: len(self.model) > 4)
    @rule(number=st.integers(0, 99), label=st.sampled_from(["cat", "dog"]), group=st.sampled_from(["g0", "g7", "gü"]))
    def relabel(self, number: int, label: str, group: str) -> None:
        """Give an image another label, group and split."""
        name = self.one(number)
        self.model[name] = Drawn(self.model[name].content, label, "val" if group == "g7" else "train", group)
        self.write()

    @rule()
    def move(self) -> None:
        """Move the whole folder: a data set that is given by its path is known by where it is, and begins anew."""
        self.homes += 1
        home = self.root / f"home{self.homes}"
        shutil.move(self.folder.parent, home)
        self.folder = home / self.folder.name
        self.stored, self.settled = set(), False

    # The cache ---------------------------------------------------------------------------------------------------

    def dataset(self) -> Dataset:
        """Return the data set as it lies there."""
        return load_dataset(str(self.folder))

    def entry(self) -> Entry:
        """Return the entry."""
        return open_entry(self.dataset().name, SPEC.key(preprocess="squash", precision="float32"))

    def state(self) -> str:
        """Return the state of the entry in a word."""
        dataset = self.dataset()
        memo = Digests.load(cache_root(dataset.name) / "digests.h5")
        digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo)
        return self.entry().state(dataset, digests, ["pooled"]).word

    def run(self, stop: int = -1) -> Outcome:
        """Extract, up to an interruption."""

        def progress(done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        job = Job(self.entry(), SPEC, "squash")
        return extract(self.dataset(), [job], batch_size=2, shard_rows=3, workers=1, progress=progress)

    @rule()
    def extract(self) -> None:
        """Compute what is new, and nothing else."""
        contents = {p.content for p in self.model.values()}
        assert self.run().images == len(contents - self.stored)
        self.stored |= contents
        self.settled = True
        assert self.state() == "ready"

    @rule(stop=st.integers(1, 12), forgetful=st.booleans())
    def extract_interrupted(self, stop: int, forgetful: bool) -> None:
        """Stop on the way, perhaps of reading all bytes again: what was there stays, what was computed is there."""
        if forgetful:
            self.forget()
        before = self.seen()
        try:
            self.run(stop)
            self.settled = True
        except KeyboardInterrupt:
            pass
        stored = {s.decode() for s in self.entry().scan("pooled")[0].tolist()}
        assert self.stored <= stored
        self.stored = stored
        after = self.seen()
        for name, content in before.items():
            if name in self.model and self.model[name].content == content:
                assert after.get(name) == content, "an unfinished run took an image out of the view"

    @rule()
    def forget(self) -> None:
        """Lose the memo of digests, which costs reading and nothing else."""
        (cache_root(self.dataset().name) / "digests.h5").unlink(missing_ok=True)
        self.settled = False

    @precondition(lambda self: self.stored)
    @rule(number=st.integers(0, 99), position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage_and_repair(self, number: int, position: float, bit: int) -> None:
        """Flip a bit of a shard or the master: verify names the file; without it just its rows are computed again."""
        entry = self.entry()
        files = sorted(p for p in [entry.master, *entry.shards.iterdir()] if p.exists())
        path = files[number % len(files)]
        image = bytearray(path.read_bytes())
        image[int(position * len(image))] ^= 1 << bit
        path.write_bytes(image)
        assert [damage.path for damage in verify(entry)] == [path]
        path.unlink()
        self.stored = {s.decode() for s in entry.scan("pooled")[0].tolist()}
        self.extract()

    @precondition(lambda self: self.settled)
    @rule()
    def verify(self) -> None:
        """Find nothing where nothing was damaged, and compute nothing where nothing is missing."""
        assert verify(self.entry()) == []
        assert self.run().images == 0

    # What always holds -------------------------------------------------------------------------------------------

    def seen(self) -> dict[str, str]:
        """Return the images that the master lists, with their content; checks that no hidden file is left."""
        entry = self.entry()
        assert not [p for p in entry.folder.parent.rglob(".*") if p.is_file()]
        if not entry.master.exists():
            return {}
        manifest = load_manifest(entry)
        pairs = zip(manifest.ids.tolist(), manifest.sha256.tolist(), strict=True)
        return {name.decode(): content.decode() for name, content in pairs}

    @invariant()
    def every_row_is_of_its_content(self) -> None:
        """Hold every row in the view against the made-up features of its content, whatever happened before."""
        listed = self.seen() if self.model else {}
        if not listed:
            return
        view = pooled_view(self.entry(), BLOCKS[:2])
        assert view.ids.tolist() == sorted(listed)
        for name, row in zip(view.ids.tolist(), view.X, strict=True):
            base = self.wanted[listed[name]].astype(np.float32)
            assert np.array_equal(row, np.concatenate([base, base + 1]))

    @invariant()
    def after_a_whole_run_the_view_is_the_model(self) -> None:
        """Compare ids, contents, labels, splits and groups."""
        if not self.settled:
            return
        names = sorted(self.model)
        view = pooled_view(self.entry(), BLOCKS[:1])
        assert view.ids.tolist() == names
        assert self.seen() == {name: p.content for name, p in self.model.items()}
        assert [["cat", "dog"][y] for y in view.y] == [self.model[name].label for name in names]
        assert view.splits.tolist() == [self.model[name].split for name in names]
        assert view.groups.tolist() == [self.model[name].group for name in names]


def test_cache_is_what_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play random lives; one that breaks a rule is made as short as can be and printed."""
    monkeypatch.setattr(features.extraction.loop, "Forward", Fold)
    monkeypatch.setattr(features.cache.content, "RACY_NS", 0)  # no two seconds of waiting: no file changes during a run
    quick = settings(max_examples=12, stateful_step_count=30, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(Life, settings=quick)


def test_the_model_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that forgets to look at the content again, by trusting names, does not get through."""
    monkeypatch.setattr(features.extraction.loop, "Forward", Fold)
    monkeypatch.setattr(features.cache.content, "RACY_NS", 0)
    real = Digests.fill

    def by_name(self: Digests, memo: Digests | None) -> None:
        real(self, memo)
        if memo is not None and len(memo.ids):
            at = np.searchsorted(memo.ids, self.ids).clip(max=len(memo.ids) - 1)
            same = memo.ids[at] == self.ids
            self.sha256[same] = memo.sha256[at[same]]

    monkeypatch.setattr(Digests, "fill", by_name)
    life = Life()
    try:
        life.start()
        life.add(1, 1, True, "train")
        life.extract()
        life.change(0, 2)
        with pytest.raises((AssertionError, CacheError)):
            life.extract()
    finally:
        life.teardown()
