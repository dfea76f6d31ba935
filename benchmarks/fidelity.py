"""What half precision changes, and how fast a forward pass is alone: parts of benchmarks.extraction."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from features.datasets import Dataset, load_dataset
from features.devices import BATCH
from features.views import View, pooled_view


class Fidelity(NamedTuple):
    """Half precision beside float32."""

    images: int
    cosine: float  # the least of all images
    full: float  # ROC AUC of a logistic head on float32 features
    half: float  # the same on the others


def compare(name: str, backbone: str, half: str, device: str, most: int = 0) -> Fidelity:
    """Extract a data set in float32 and in half precision; compare features and heads."""
    dataset = load_dataset(name)
    dataset = thinned(dataset, -(-len(dataset) // most)) if most else dataset
    full, low = (view_in(dataset, backbone, precision, device) for precision in ("float32", half))
    cosine = (full.X * low.X).sum(1) / np.linalg.norm(full.X, axis=1) / np.linalg.norm(low.X, axis=1)
    return Fidelity(len(dataset), float(cosine.min()), area(full), area(low))


def thinned(dataset: Dataset, step: int) -> Dataset:
    """Return every so many-th image."""
    columns = {name: getattr(dataset, name)[::step] for name in ("ids", "labels", "splits", "groups")}
    return replace(dataset, **columns)


def view_in(dataset: Dataset, backbone: str, precision: str, device: str) -> View:
    """Extract, and return the last block, averaged."""
    from benchmarks.stages import jobs
    from features.extraction.loop import extract

    (job,) = jobs(dataset, [backbone], precision)
    extract(dataset, [job], device=device, batch_size=BATCH[device])
    return pooled_view(job.entry, list(job.entry.key.blocks)[-1:])


def area(view: View) -> float:
    """Return the ROC AUC of a logistic head on the test images, of several classes the mean of one against rest."""
    from sklearn.metrics import roc_auc_score

    from models.heads import make_head

    test = view.splits == "test"
    head = make_head("logistic").fit(view.X[~test], view.y[~test], view.groups[~test])
    proba: Any = head.predict_proba(view.X[test])
    of_classes = proba[:, 1] if proba.shape[1] == 2 else proba
    return float(roc_auc_score(view.y[test], of_classes, multi_class="ovr"))


class Forwarded(NamedTuple):
    """How fast the forward stage is alone."""

    rate: float  # images per second, from pixels in memory to features on the device
    first: float  # seconds of the first call, in which kernels are chosen or compiled and the graph is recorded


def forward_rate(
    backbone: str, device: str, *, precision: str = "float16", compiled: bool = False, seconds: float = 5.0
) -> Forwarded:
    """Run the forward stage alone for some seconds, after a first call that is told apart."""
    import torch

    from features.backbones import load_spec
    from features.extraction.forward import Forward

    spec = load_spec(backbone)
    network = Forward(spec, device=device, precision=precision, batch_size=BATCH[device], compiled=compiled)
    shape = (network.batch_size, 3, spec.size, spec.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    start = time.perf_counter()
    network(pixels)
    wait()
    first = time.perf_counter() - start
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        network(pixels)
        done += len(pixels)
    wait()
    return Forwarded(done / (time.perf_counter() - start), first)
