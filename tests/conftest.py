"""Tiny real things for all tests: drawn images on the disk, artifacts in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; must be set before torch loads

import numpy as np
import pytest
from PIL import Image

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"
needs_images = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no ../shared/data: real images missing")
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="no ../shared/weights: real weights missing"
)


GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="session", autouse=True)
def no_gpu_unasked() -> Iterator[None]:
    """Make "auto" the CPU, here and in processes that tests start: what they expect is a CPU's to the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Give every test artifacts and data folders of its own and no weights but the bundled ones.

    A GPU is seen by those alone that are skipped where there is "no GPU here".
    """
    if any(mark.kwargs.get("reason") == "no GPU here" for mark in request.node.iter_markers("skipif")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES") if GPUS is None else monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS)
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("FIRN_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("FIRN_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("features.cache.content.RACY_NS", 0)  # drawn a moment ago, and nothing changes within a tick


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow above `size` bytes, as on a full disk; around one call, for pytest too may write to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def draw(folder: Path, *, per_class: int = 12, test: int = 4, seed: int = 0, size: int = 48) -> Path:
    """Draw `per_class` images of two classes (bright disc or not) into train/ and test/ class folders."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]
    for split, count in (("train", per_class), ("test", test)):
        for name, bright in (("normal", 0), ("spot", 60)):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise = rng.integers(40, 120, (size, size))
                at = rng.integers(size // 4, 3 * size // 4, 2)
                disc = (yy - at[0]) ** 2 + (xx - at[1]) ** 2 < (size // 6) ** 2
                Image.fromarray((noise + bright * disc).astype(np.uint8)).save(target / f"{split}{i:03d}.png")
    return folder


def stored(stem: str) -> str:
    """Return the name, with its digest, of the one data set of a path ending in `stem` that artifacts know."""
    from features.storage import artifacts_root

    (name,) = {
        path.name for path in artifacts_root().glob(f"*/{stem}-*") if re.fullmatch(stem + "-[0-9a-f]{6}", path.name)
    }
    return name


@pytest.fixture(scope="session")
def trained_spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `spots`, drawn images, and `artifacts`: features and a few runs on them, made once."""
    from verbs_for_tests import extract, finetune, train_heads

    root = tmp_path_factory.mktemp("trained")
    folder, net = str(draw(root / "spots", per_class=10)), "squeezenet1_1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(root / "artifacts"))
        patch.delenv("FIRN_WEIGHTS", raising=False)
        extract(folder, net, maps="2", precision="float32")
        train_heads(folder, net, heads="logistic lightgbm spatial stack", precision="float32")
        train_heads(folder, net, heads="logistic", blocks="2", pool="both", precision="float32")
        finetune(folder, net, epochs=1, batch_size=8, precision="float32")
    return root


@pytest.fixture
def workshop(trained_spots: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return `trained_spots` as the place that Firn reads from and writes to."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(trained_spots / "artifacts"))
    return trained_spots


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    """Return a folder of 32 drawn images: 12 + 4 of each of two classes."""
    return draw(tmp_path / "spots")
