"""An epoch from cached maps against an ordinary epoch with a frozen trunk; a step on images against one on nothing.

    FIRN_DATA=../shared/data FIRN_WEIGHTS=../shared/weights python -m benchmarks.finetuning [--device cuda --files]
    FIRN_DATA=../shared/data FIRN_WEIGHTS=../shared/weights python -m benchmarks.finetuning --whole [--device cuda]

With --whole: an epoch of RECIPE=strong, with all that belongs to it, against as many steps of the same network and
optimiser on one batch of random tensors that lies on the device. The bar is 0.8 of its images a second.

Both train the same tail and classifier with the same optimiser on the same images, batch and precision, in turn. The
ordinary epoch has its images decoded, resized and normalised in memory (with --files: reads them from the disk);
the other reads maps from a cache entry, every row checked. The limit is what the operation counts allow,
(trunk + 3 tail) / (3 tail): a backward pass costs two forward ones. Networks without weights at hand get random ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from features.backbones import load_spec
from features.backbones.build import IMAGES, boundary, load_backbone, load_tail, network, row, truncated
from features.cache import open_entry
from features.datasets import load_dataset
from features.extraction.job import Job
from features.extraction.loop import extract
from features.extraction.prefetch import ImageStream
from features.views import map_rows
from models.finetuning.augmentation import Pixels
from models.finetuning.batches import Inputs
from models.finetuning.images import DecodedImages
from models.finetuning.network import FinetunedNetwork, arithmetic, parameter_groups, products, set_mode
from models.finetuning.settings import RECIPES, FinetuneOptions
from models.finetuning.train import Task, train

NETWORKS = ("resnet18", "resnet50", "resnet101")
PLAIN: dict[str, Any] = {"mixup": 0.0, "dropout": 0.0, "average": "none"}  # the ordinary loop has none of these
SHARE = 0.9  # of the limit, the bar
WATCHED = 8  # images that the training looks at after its epoch; not timed


def images(n: int, folder: Path) -> str:
    """Return a folder with about n images of pneumonia, half of each class."""
    source = Path(os.environ.get("FIRN_DATA", "data")) / "pneumonia" / "train"
    for name in ("NORMAL", "PNEUMONIA"):
        target = folder / "images" / "train" / name
        target.mkdir(parents=True)
        for path in sorted((source / name).iterdir())[: n // 2]:
            shutil.copy(path, target)
    return str(folder / "images")


def weights(name: str, folder: Path) -> Path | None:
    """Return a file of random weights for a network that has none at hand."""
    at_hand = Path(os.environ.get("FIRN_WEIGHTS", "")) / f"{name}.pth"
    if at_hand.is_file():
        return None
    torch.manual_seed(0)
    state = network(row(name), "cpu").state_dict()
    for key in state:
        if key.endswith("bn3.weight"):  # or else random residuals add up to more than float16 holds
            state[key].fill_(0.1)
    torch.save(state, folder / f"{name}.pth")
    return folder / f"{name}.pth"


class Case:
    """One network on the images, with both ways to train its last block."""

    def __init__(self, name: str, data: str, folder: Path, precision: str, device: str, files: bool) -> None:
        self.spec = load_spec(name, weights(name, folder))
        dataset = load_dataset(data)
        self.after = boundary(self.spec, "1")
        entry = open_entry(f"{dataset.name}-{precision}", self.spec.key(preprocess="squash", precision=precision))
        extract(dataset, [Job(entry, self.spec, "squash", (self.after,))], device=device)
        self.maps = map_rows(entry, self.after)
        self.stream = ImageStream(dataset.source, self.maps.ids.tolist(), self.spec, "squash")
        n = len(self.maps.ids)
        self.pixels = None if files else self.stream.read(np.arange(n))
        self.y = np.array([int("PNEUMONIA" in i) for i in self.maps.ids])
        self.rows, self.watched = np.arange(n - WATCHED), np.arange(n - WATCHED, n)
        self.settings = FinetuneOptions(epochs=1, **PLAIN).settings(precision=precision, seed=0)
        self.device = device

    def thawed(self) -> FinetunedNetwork:
        """Return the tail with its classifier."""
        return FinetunedNetwork(load_tail(self.spec, self.after), list(self.spec.blocks.values())[-1][0], 2)

    def from_cache(self) -> float:
        """Return the seconds from the start of Firn's training to its last step."""
        net, last = self.thawed(), 0.0
        task = Task(Inputs([self.maps]), self.y, self.rows, self.watched, 0)

        def step(done: int, total: int) -> None:
            nonlocal last
            if done == total:
                _wait(self.device)
                last = time.perf_counter()

        start = time.perf_counter()
        train(net, task, self.settings, device=self.device, step=step)
        return last - start

    def ordinary(self) -> float:
        """Return the seconds of one epoch as everyone writes it: trunk without gradients, tail with them."""
        trunk = load_backbone(truncated(self.spec, self.after)).to(self.device, memory_format=torch.channels_last)
        net: Any = self.thawed().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = RECIPES["adamw"].optimiser(parameter_groups(net, self.settings.decay), self.settings.rate)
        set_mode(net, training=True, norm="frozen")
        order, size = np.random.default_rng(0).permutation(self.rows), self.settings.batch
        start = time.perf_counter()
        for at in np.array_split(order, round(len(order) / size)):
            pixels = self.stream.read(at) if self.pixels is None else self.pixels[at]
            X = torch.from_numpy(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
            with arithmetic(self.settings.precision, self.device):
                with torch.no_grad():
                    maps = trunk(X)[self.after]
                loss = cross_entropy(net(maps), torch.from_numpy(self.y[at]).to(self.device))
            optimiser.zero_grad(set_to_none=True)
            with products(self.settings.precision, self.device):
                loss.backward()
            optimiser.step()
        _wait(self.device)
        return time.perf_counter() - start

    def limit(self) -> float:
        """Return what the operation counts allow, and no more."""
        side, (c, h, w) = self.spec.size, self.spec.blocks[self.after]
        trunk = _operations(load_backbone(truncated(self.spec, self.after)), torch.zeros(1, 3, side, side))
        tail = _operations(self.thawed().eval(), torch.zeros(1, c, h, w))
        return (trunk + 3 * tail) / (3 * tail)


class Whole:
    """A whole network on images, with a training and bare steps."""

    def __init__(self, name: str, data: str, folder: Path, precision: str, device: str) -> None:
        self.spec, self.device = load_spec(name, weights(name, folder)), device
        dataset = load_dataset(data)
        ids = sorted(dataset.ids)
        images = DecodedImages(dataset.source, ids, self.spec, "squash", workers=os.cpu_count() or 1)
        self.inputs = Inputs([images], Pixels(self.spec.mean, self.spec.std))
        self.y = np.array([int("PNEUMONIA" in i) for i in ids])
        self.settings = FinetuneOptions(blocks="all", epochs=1).settings(precision=precision, seed=0)
        self.steps = round(len(ids) / self.settings.batch)

    def network(self) -> FinetunedNetwork:
        """Return the network with its classifier."""
        return FinetunedNetwork(load_tail(self.spec, IMAGES), list(self.spec.blocks.values())[-1][0], 2)

    def trained(self) -> float:
        """Return the seconds of an epoch, from its first step to its last."""
        times: list[float] = []
        rows = np.arange(len(self.y))

        def step(done: int, total: int) -> None:
            if done in (1, total):
                _wait(self.device)
                times.append(time.perf_counter())

        task = Task(self.inputs, self.y, rows, rows[:WATCHED], 0)
        train(self.network(), task, self.settings, device=self.device, step=step)
        return times[1] - times[0]

    def bare(self) -> float:
        """Return the seconds of as many steps on one random batch."""
        net: Any = self.network().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = RECIPES["strong"].optimiser(parameter_groups(net, 0.01, 10.0), 1e-4)
        side, size = self.spec.size, self.settings.batch
        X = torch.rand(size, 3, side, side, device=self.device).contiguous(memory_format=torch.channels_last)
        y = torch.randint(2, (size,), device=self.device)
        set_mode(net, training=True, norm="frozen")
        start = 0.0
        for step in range(self.steps):
            with arithmetic(self.settings.precision, self.device):
                loss = cross_entropy(net(X), y)
            optimiser.zero_grad(set_to_none=True)
            with products(self.settings.precision, self.device):
                loss.backward()
            optimiser.step()
            if step == 0:
                _wait(self.device)
                start = time.perf_counter()
        _wait(self.device)
        return time.perf_counter() - start


def whole_networks(asked: argparse.Namespace, data: str, folder: Path) -> None:
    """Print the table of --whole."""
    print("| network, precision | images/s, RECIPE=strong | images/s, random tensors | share | bar |")
    print("|---|---|---|---|---|")
    for backbone in asked.networks:
        for precision in asked.precisions:
            case = Whole(backbone, data, folder, precision, asked.device)
            images = (case.steps - 1) * case.settings.batch
            ours, bare = (images / statistics.median(s) for s in _in_turn(case.trained, case.bare, asked.repeats))
            print(f"| {backbone}, {precision} | {ours:,.1f} | {bare:,.1f} | {ours / bare:.2f} | >= 0.8 |", flush=True)


def _operations(module: torch.nn.Module, X: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(X)
    return int(counter.get_total_flops())


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _in_turn(first: Callable[[], float], second: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, measured one after the other over and over; the first round does not count."""
    pairs = [(first(), second()) for _ in range(repeats + 1)][1:]
    a, b = zip(*pairs, strict=True)
    return list(a), list(b)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, default=392)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--files", action="store_true", help="the ordinary epoch reads its images from the disk")
    parser.add_argument("--whole", action="store_true", help="whole networks on augmented images")
    asked = parser.parse_args()
    if asked.whole:
        with tempfile.TemporaryDirectory() as name:
            whole_networks(asked, images(asked.images, Path(name)), Path(name))
        return
    print("| network, precision | ordinary epoch, s | from the cache, s | ratio | limit by operations | share | bar |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FIRN_ARTIFACTS"] = str(folder / "artifacts")
        data = images(asked.images, folder)
        for backbone in asked.networks:
            for precision in asked.precisions:
                case = Case(backbone, data, folder, precision, asked.device, asked.files)
                slow, fast = _in_turn(case.ordinary, case.from_cache, asked.repeats)
                ratio, limit = statistics.median(a / b for a, b in zip(slow, fast, strict=True)), case.limit()
                print(
                    f"| {backbone}, {precision} | {statistics.median(slow):.2f} | {statistics.median(fast):.2f} "
                    f"| {ratio:.2f} | {limit:.2f} | {ratio / limit:.2f} | >= {SHARE} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
