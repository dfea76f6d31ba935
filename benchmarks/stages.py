"""What benchmarks.extraction compares: the loop that everyone writes, Firn's extraction, and its stages done alone."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.backbones import load_spec
from features.cache import Digests, Entry, open_entry
from features.datasets import Dataset, load_dataset
from features.devices import BATCH, cores
from features.extraction.job import Job
from features.extraction.loop import extract
from features.storage import data_root

NO_WEIGHTS = ("mobilenet_v3_small", "resnet101")  # random numbers do where the real ones are missing: speed is the same

_TELLING = 2.1  # seconds until the times of new files tell; the extraction would wait for that


class Spent(NamedTuple):
    """What a piece of work took, per image."""

    wall: float  # seconds
    processor: float  # seconds of all cores, of this process and its children


def spent(work: Callable[[], object], images: int) -> Spent:
    """Do a piece of work and return what it took. Processor time is the figure that other work on the cores spares."""
    before, start = _processor(), time.perf_counter()
    work()
    return Spent((time.perf_counter() - start) / images, (_processor() - before) / images)


def _processor() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def median(many: list[Spent]) -> Spent:
    """Return the median of each figure."""
    return Spent(*(float(np.median(column)) for column in zip(*many, strict=True)))


def give_weights(folder: Path, names: list[str]) -> None:
    """Point FIRN_WEIGHTS at a folder with all weights: the real ones by link, random ones where there are none."""
    import torch

    from features.backbones.build import network, row

    given = Path(os.environ.get("FIRN_WEIGHTS", "."))
    folder.mkdir()
    for name in names:
        found = next((p for p in given.glob(f"{name}.*") if p.suffix in (".pth", ".safetensors")), None)
        if found:
            (folder / found.name).symlink_to(found.resolve())
        elif name in NO_WEIGHTS:
            torch.manual_seed(0)
            torch.save(network(row(name)).state_dict(), folder / f"{name}.pth")
    os.environ["FIRN_WEIGHTS"] = str(folder)


def some_images(folder: Path, count: int) -> Path:
    """Return class folders with copies of `count` pneumonia images of the training split, half of each class.

    Where they are too few they are repeated, with a comment in the JPEG that makes another content of it.
    """
    for name in ("NORMAL", "PNEUMONIA"):
        (folder / name).mkdir(parents=True)
        images = sorted((data_root() / "pneumonia" / "train" / name).iterdir())
        for i in range(count // 2):
            again, at = divmod(i, len(images))
            (folder / name / f"{again}-{images[at].name}").write_bytes(commented(images[at].read_bytes(), again))
    time.sleep(_TELLING)
    return folder


def commented(jpeg: bytes, number: int) -> bytes:
    """Return a JPEG with a number in a comment (ITU T.81, B.2.4.5); for 0 as it is."""
    return jpeg[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4) + jpeg[2:] if number else jpeg


def large_images(folder: Path, count: int) -> Path:
    """Return class folders with `count` full-size radiographs: the 40 over and over, told apart at the end."""
    real = sorted((data_root() / "radiographs_fullsize").iterdir())
    for i in range(count):
        image = real[i % len(real)]
        target = folder / ("virus" if "virus" in image.name else "other") / f"{i:05d}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes() + i.to_bytes(4, "little"))
    time.sleep(_TELLING)
    return folder


def loop_of(folder: Path, name: str, file: Path, device: str, *, workers: int, precision: str) -> dict[str, Any]:
    """Return what `benchmarks.loop.loop` takes for the last block of a backbone."""
    line, spec = _row(name), load_spec(name)
    network = {"network": line.architecture, "options": line.options, "node": list(line.blocks.values())[-1]}
    weights = {"weights": str(spec.file), "preprocessing": line.weights}
    how = {"device": device, "workers": workers, "precision": precision}
    return {"folder": str(folder), "file": str(file)} | network | weights | how


def everyones_loader(folder: Path, name: str) -> Any:
    """Return the loop's loader with two workers."""
    from benchmarks.loop import loader

    return loader(str(folder), _row(name).weights)


def _row(name: str) -> Any:
    from features.backbones.build import row

    return row(name)


@contextmanager
def artifacts(folder: Path) -> Iterator[Path]:
    """Give an empty FIRN_ARTIFACTS that is gone afterwards."""
    before = os.environ.get("FIRN_ARTIFACTS")
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["FIRN_ARTIFACTS"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ["FIRN_ARTIFACTS"]
        os.environ |= {"FIRN_ARTIFACTS": before} if before else {}


def jobs(dataset: Dataset, names: list[str], precision: str) -> list[Job]:
    """Return one job per backbone."""
    specs = [load_spec(name) for name in names]
    return [Job(open_entry(dataset.name, r.key(preprocess="squash", precision=precision)), r, "squash") for r in specs]


def firn(folder: Path, names: list[str], precision: str, device: str) -> Entry:
    """Extract as the command does, files on the disk to committed HDF5; return the entry of the first backbone."""
    dataset = load_dataset(str(folder))
    asked = jobs(dataset, names, precision)
    extract(dataset, asked, device=device, batch_size=BATCH[device], workers=cores())
    return asked[0].entry


class Alone:
    """The stages of an extraction, each done alone: decode and preprocess, forward from memory, write."""

    def __init__(self, folder: Path, names: list[str], precision: str, device: str) -> None:
        from features.extraction.forward import Forward
        from features.extraction.workers import WorkerPool

        self.dataset = load_dataset(str(folder))
        self.jobs = jobs(self.dataset, names, precision)
        self.batch, self.device = BATCH[device], device
        self.pool = WorkerPool(device)
        self.networks = [
            Forward(job.spec, device=device, precision=precision, batch_size=self.batch) for job in self.jobs
        ]
        prepared = list(self._prepared())
        self._digests = np.array([p.sha256 for p in prepared], "S64")
        self._pixels = [p.pixels[0] for p in prepared[: 4 * self.batch]]
        self.forward()  # warm
        self._named = [self._features(network) for network in self.networks]

    def _prepared(self) -> Iterator[Any]:
        """Read, digest, decode and preprocess all images as the extraction does, by processes where it takes some."""
        from features.extraction.processes import decoded

        source, ids, workers = self.dataset.source, self.dataset.ids, cores()
        geometries = tuple(dict.fromkeys(job.spec.geometry(job.preprocess) for job in self.jobs))
        how: dict[str, Any] = {"device": self.device, "workers": workers, "ahead": 2 * self.batch + 8 * workers}
        yield from decoded(source, ids, geometries, **how, images=len(ids))

    def decode(self) -> None:
        """Decode all images and drop them."""
        for _ in self._prepared():
            pass

    def forward(self) -> None:
        """Run every network on as many images as the set has, from memory."""
        for network in self.networks:
            self._features(network)

    def _features(self, network: Any) -> dict[str, NDArray[Any]]:
        from features.extraction.forward import to_arrays

        n = len(self.dataset)

        def batch(i: int) -> Any:
            pixels = [self._pixels[(i + k) % len(self._pixels)] for k in range(min(self.batch, n - i))]
            return network(np.stack(pixels))

        # Fetched beside the next batch, as an extraction does: a GPU that waits for each of them tells too low a rate.
        pieces = [to_arrays(found) for found in self.pool.each(batch, range(0, n, self.batch))]
        return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}

    def write(self) -> None:
        """Commit all features of every network in as many shards as an extraction would, and the masters."""
        rows = max(64, -(-len(self.dataset) // 16))
        known = Digests.of(self.dataset.ids, self.dataset.source.stamps(self.dataset.ids))
        known.sha256[:] = self._digests
        for job, named in zip(self.jobs, self._named, strict=True):
            for i in range(0, len(self.dataset), rows):
                some = {name: array[i : i + rows] for name, array in named.items()}
                job.entry.commit("pooled", self._digests[i : i + rows], some)
            job.entry.refresh(self.dataset, known, {}, {})


def limit(parts: list[float], device: str) -> float:
    """Return the least seconds per image that the stages allow: one after the other where they share the cores."""
    return sum(parts) if device == "cpu" else max(parts)
