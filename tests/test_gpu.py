"""What only a GPU can show: its features are the CPU's, batches are replayed, a lack of memory costs no row."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_backbones import CNNS, random_weights
from test_extraction import ROOT, everything, job
from torch import nn
from torch.nn.functional import cross_entropy

from features.backbones import load_spec
from features.cache import entries
from features.datasets import load_dataset
from features.errors import FirnError
from features.extraction import loop, processes
from features.extraction.cuda_graph import COMPILE_FROM, compiling_pays, made
from features.extraction.forward import Forward, to_arrays
from features.extraction.loop import extract
from features.progress import heard
from features.views import View
from models.finetuning import train as training
from models.finetuning.batches import Inputs
from models.finetuning.network import FinetunedNetwork, arithmetic, products
from models.finetuning.settings import Settings
from models.logistic_path import sweep

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPUS = torch.cuda.device_count()  # now, for other tests hide them, and torch remembers what it counts then
# Of the norm of a block's features.
TOLERANCES = {"float32": 1e-5, "tf32": 3e-3, "float16": 3e-3, "bfloat16": 3e-2}


def images(n: int, channels: int = 1, side: int = 224) -> np.ndarray:
    """Return drawn pixels, (n, channels, side, side) uint8."""
    return np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8)


@on_gpu
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", CNNS)
def test_features_are_those_of_the_cpu(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of BACKBONES in every precision, within the tolerance; grey and colour; again, the same bits."""
    random_weights(name, tmp_path)
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    spec = load_spec(name)
    on_cpu, forward = Forward(spec, batch_size=4), Forward(spec, device="cuda", precision=precision, batch_size=4)
    for pixels in (images(6, 1, spec.size), images(6, 3, spec.size)):
        expected, found = to_arrays(on_cpu(pixels)), to_arrays(forward(pixels))
        for key, array in expected.items():
            error = np.linalg.norm(found[key].astype(np.float64) - array) / np.linalg.norm(array.astype(np.float64))
            assert error <= TOLERANCES[precision] + 5e-4, key  # 5e-4: both are stored in float16
        assert all(np.array_equal(found[key], again) for key, again in to_arrays(forward(pixels)).items())
    assert forward.replays == 8, "every batch was a replay"


@on_gpu
@pytest.mark.skipif(not compiling_pays("cuda", COMPILE_FROM), reason="no compiler here")
@pytest.mark.filterwarnings(r"ignore:::(torch|triton)(\.|$)")  # compilers advise, as of TF32
def test_compiled_kernels_round_alike() -> None:
    """What torch.compile makes is recorded too, and is the same within the tolerance."""
    spec = load_spec("squeezenet1_1")
    plain, compiled = (Forward(spec, device="cuda", batch_size=4, compiled=c) for c in (False, True))
    for key, array in to_arrays(plain(images(8))).items():
        np.testing.assert_allclose(to_arrays(compiled(images(8)))[key], array, rtol=2e-3, atol=1e-3)
    assert compiled.replays > 0


@on_gpu
def test_out_of_memory_halves_the_batch() -> None:
    """With little memory the batch shrinks and all rows are those of a run that has enough."""
    forward = Forward(load_spec("squeezenet1_1"), device="cuda", batch_size=2048)
    gc.collect()  # networks of other tests
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + (1 << 30)) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        found = to_arrays(forward(images(40)))
        assert forward.batch_size < 2048
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    expected = to_arrays(Forward(load_spec("squeezenet1_1"), device="cuda", batch_size=32)(images(40)))
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=2e-3, atol=1e-3)


@on_gpu
def test_batches_on_their_way_do_not_mix() -> None:
    """Many batches, none waited for, fetched by another thread meanwhile: each has its own features to the bit."""
    forward = Forward(load_spec("squeezenet1_1"), device="cuda", precision="float16", batch_size=8)
    batches = [np.roll(images(8), shift, axis=0) ^ np.uint8(shift) for shift in range(30)]
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(to_arrays, forward(pixels)) for pixels in batches]
    for pixels, found in zip(batches, coming, strict=True):
        alone = to_arrays(forward(pixels))
        assert all(np.array_equal(array, alone[key]) for key, array in found.result().items())


@on_gpu
def test_a_recording_is_not_disturbed() -> None:
    """Another thread fetches features again and again, more often than torch has streams, while a batch is recorded."""
    spec = load_spec("squeezenet1_1")
    forward, other = (Forward(spec, device="cuda", batch_size=size) for size in (4, 8))
    named = forward(images(4))
    after = made(named)
    with ThreadPoolExecutor(1) as pool, heard() as lines:
        coming = [pool.submit(to_arrays, named, "", after) for _ in range(500)]
        to_arrays(other(images(8)))
    assert not lines and other.replays == 1
    first, *rest = (each.result() for each in coming)
    assert all(np.array_equal(array, each[key]) for each in rest for key, array in first.items())


@on_gpu
def test_what_cannot_be_recorded_is_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that asks for a number in between runs unrecorded, on the stream whose end is waited for."""
    forward = Forward(load_spec("squeezenet1_1"), device="cuda", batch_size=4)
    features = forward._features

    def asking(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return features(pixels) if float(pixels.float().mean()) >= 0 else {}

    expected = to_arrays(forward(images(8)))
    monkeypatch.setattr(forward, "_features", asking)
    forward._steps.clear()
    with heard() as lines:
        found = to_arrays(forward(images(8)))
    assert len(lines) == 1 and "not recorded as a CUDA graph" in lines[0]
    assert forward.replays == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=2e-3, atol=1e-3)


@on_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("tf32", 5e-3), ("bfloat16", 5e-2)])
def test_a_step_of_training_is_that_of_the_cpu(precision: str, tolerance: float) -> None:
    """Logits and gradients of a fine-tuned network, within the tolerance of what PRECISION= says."""
    torch.manual_seed(0)
    maps, found = torch.randn(16, 64, 14, 14), []
    tail = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3))
    for how, device in (("float32", "cpu"), (precision, "cuda")):
        network = FinetunedNetwork(copy.deepcopy(tail), 32, 2).to(device)
        with arithmetic(how, device):
            logits = network(maps.to(device))
        with products(how, device):
            cross_entropy(logits, torch.arange(16, device=device) % 2).backward()
        found.append([logits.detach().cpu(), *(p.grad.cpu() for p in network.parameters() if p.grad is not None)])
    for exact, other in zip(*found, strict=True):
        assert float((other - exact).norm()) <= tolerance * float(exact.norm())


@on_gpu
def test_a_run_is_resumed_to_the_same_bits(spots: Path) -> None:
    """Half the images first and the rest later give the rows of one run."""
    dataset = load_dataset(str(spots))
    whole, halves = job(spots, name="whole"), job(spots, name="halves")
    extract(dataset, [whole], device="cuda", batch_size=8)
    some = np.arange(len(dataset)) < len(dataset) // 2
    columns = {name: getattr(dataset, name)[some] for name in ("labels", "splits", "groups")}
    first = replace(dataset, ids=[i for i, own in zip(dataset.ids, some, strict=True) if own], **columns)
    extract(first, [halves], device="cuda", batch_size=8)
    extract(dataset, [halves], device="cuda", batch_size=8)
    assert all(np.array_equal(a, b) for a, b in zip(everything(whole.entry), everything(halves.entry), strict=True))


@on_gpu
def test_processes_feed_a_gpu(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as threads give."""
    one, other = job(spots, precision="bfloat16"), job(spots, precision="bfloat16", name="by-processes")
    dataset, counts = load_dataset(str(spots)), []
    settings: dict[str, Any] = {"device": "cuda", "batch_size": 4, "workers": processes.FEWEST}
    extract(dataset, [one], **settings)
    monkeypatch.setattr(processes, "IMAGES_FROM", 1)
    monkeypatch.setattr(loop, "DecodingProcesses", lambda *a: counts.append(a[2]) or processes.DecodingProcesses(*a))
    extract(dataset, [other], **settings)
    assert counts == [processes.FEWEST]
    for ours, theirs in zip(everything(one.entry), everything(other.entry), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_gpu
def test_a_gpu_by_its_number() -> None:
    """cuda:0 and the last one are both at work where there are several; features are the same."""
    spec, found = load_spec("squeezenet1_1"), []
    for name in sorted({"cuda:0", f"cuda:{GPUS - 1}"}):
        forward = Forward(spec, device=name, batch_size=4)
        to_arrays(forward(images(4)))  # recorded with other pixels than are shown
        found.append(to_arrays(forward(images(8)[4:])))
    assert all(np.array_equal(found[0][key], other[key]) for other in found for key in other)


@on_gpu
def test_overflow_is_an_error_not_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that overflow float16 end the run before a row is committed, saying what to type."""
    random_weights("resnet18", tmp_path)
    state = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    state["layer1.0.conv1.weight"] *= 1e6
    torch.save(state, tmp_path / "resnet18.pth")
    monkeypatch.setenv("FIRN_WEIGHTS", str(tmp_path))
    with pytest.raises(FirnError, match="has values beyond 65,504"):
        to_arrays(Forward(load_spec("resnet18"), device="cuda", precision="float16", batch_size=4)(images(4)))


@on_gpu
def test_the_sweep_is_that_of_the_cpu() -> None:
    """Coefficients of all strengths and folds agree."""
    rng = np.random.default_rng(0)
    X, y, folds = rng.normal(size=(400, 32)).astype(np.float32), rng.integers(0, 2, 400), np.arange(400) % 3
    settings = {"strengths": [1e-2, 1.0], "folds": folds != np.arange(3)[:, None], "tol": 1e-10}
    on_cpu, found = sweep(X, y, **settings), sweep(X, y, **settings, device="cuda")
    np.testing.assert_allclose(found.coef, on_cpu.coef, atol=1e-4 * np.abs(on_cpu.coef).max())


@on_gpu
def test_the_demo_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` in a folder of its own: "auto" is the GPU."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path))
    command = ["make", "demo", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert [entry.key.precision for entry in entries("phantom")] == ["float16"]


def _of_float32() -> set[str]:
    """Return how NVIDIA's libraries multiply float32 numbers now."""
    return {torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("precision", "kind"), [("float32", "ieee"), ("tf32", "tf32")])
def test_a_training_multiplies_as_its_precision_says(
    precision: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 is not rounded to TF32 on a GPU, forwards and backwards, and neither is ever bfloat16."""
    with arithmetic(precision, "cuda"):
        assert _of_float32() == {kind}
    with arithmetic(precision, "cpu"):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(training, "products", lambda precision, device: products(precision, "cuda"))
    before, seen = _of_float32(), list[set[str]]()
    network = FinetunedNetwork(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()), 8, 2)
    network.classifier.weight.register_hook(lambda grad: seen.append(_of_float32()))
    X, names = np.zeros((16, 6, 7, 7), np.float16), np.arange(16).astype(str)
    view = View(X, np.arange(16) % 2, names, names, np.full(16, "train"))
    task = training.Task(Inputs([view]), view.y, np.arange(16), np.arange(16), 0)
    settings = Settings(batch=8, precision=precision)
    state = training._State(network, settings)
    assert len(list(training._steps(state, task, settings, training._plan(network, task, settings, 0), "cpu"))) == 2
    assert seen == [{kind}] * 2
    assert _of_float32() == before


def test_compiling_is_for_large_sets_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the device, the number of images, triton, a compiler and Python's headers, and on nothing else."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("features.extraction.cuda_graph.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/cc" if name == "cc" else None)
    assert compiling_pays("cuda:1", COMPILE_FROM)
    assert not compiling_pays("cuda:1", COMPILE_FROM - 1)
    assert not compiling_pays("cpu", COMPILE_FROM)
    (tmp_path / "Python.h").unlink()
    assert not compiling_pays("cuda:1", COMPILE_FROM)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiling_pays("cuda:1", COMPILE_FROM)
