"""Heads on a GPU, as far as a CPU can show it: torch's own code on the CPU ("torch-cpu") learns the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from test_heads import drawn
from verbs_for_tests import extract, train_heads

from features.devices import cores, device_for
from features.errors import FirnError, UnknownName
from features.progress import heard
from models.heads import HEADS, linear, make_head, map_heads
from models.heads.head import Nested
from models.heads.linear import probabilities
from models.logistic_path import sweep
from models.predictor.heads import NetworkModel
from models.runs.record import load_record

if TYPE_CHECKING:
    from models.finetuning.network import Ensemble

NET = "squeezenet1_1"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["torch-cpu", pytest.param("cuda", marks=on_gpu)]
USE_ONE = ("logistic", "ridge", "map", "attention", "spatial")  # heads that can be computed on a GPU


@pytest.fixture(autouse=True)
def as_strict_as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no tensor become an array unasked: numpy takes those of the CPU, and refuses those of a GPU."""

    def refused(*_: object, **__: object) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    monkeypatch.setattr(torch.Tensor, "__array__", refused)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", USE_ONE)
def test_a_gpus_code_learns_the_same(name: str, device: str) -> None:
    """Probabilities, choices and nested folds are those of the CPU, and it is said where they were computed."""
    X, y, groups = drawn(HEADS[name].input, 3, n=240)
    folds = np.arange(240) // 4 % 4
    on_cpu, other = (make_head(name, device=where).fit(X, y, groups) for where in ("cpu", device))
    assert (on_cpu.device_, other.device_) == ("cpu", device)
    trained = name in ("map", "attention") and device == "cuda"  # epochs of steps, each rounded otherwise
    np.testing.assert_allclose(other.predict_proba(X), on_cpu.predict_proba(X), atol=2e-2 if trained else 2e-3)
    if isinstance(on_cpu, Nested) and isinstance(other, Nested):
        nested = [head.fit_folds(X, y, folds, lambda done, total: None) for head in (on_cpu, other)]
        np.testing.assert_allclose(*nested, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in USE_ONE])
def test_other_heads_stay_on_the_cpu(name: str) -> None:
    """They take the device, learn bit for bit as without it, and say that it was the CPU."""
    X, y, groups = drawn(HEADS[name].input, n=120)
    heads = [make_head(name, device=device).fit(X, y, groups) for device in ("cpu", "torch-cpu")]
    assert heads[1].device_ == "cpu"
    assert np.array_equal(*(head.predict_proba(X) for head in heads))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["logistic", "ridge", "mlp", "lda"])
def test_several_findings(name: str, device: str) -> None:
    """Heads of several findings go the same way, those of a head for each finding included."""
    X, y, groups = drawn("pooled", n=240)
    matrix = np.stack([y, (X[:, 2] > 0).astype(np.int64), np.where(np.arange(240) % 7, y, -1)], axis=1)
    heads = [make_head(name, findings=True, device=where).fit(X, matrix, groups) for where in ("cpu", device)]
    assert [head.device_ for head in heads] == ["cpu", "cpu" if name == "lda" else device]
    proba = [head.predict_proba(X) for head in heads]
    trained = name == "mlp" and device == "cuda"
    np.testing.assert_allclose(proba[1], proba[0], atol=2e-2 if trained else 2e-3)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED")],
)
def test_a_gpu_too_small(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit the memory is computed on the CPU, to the same numbers, and a line says so."""

    def full(work: Any, *args: Any, device: str, **how: Any) -> Any:
        if device != "cpu":
            raise error
        return work(*args, device=device, **how)

    monkeypatch.setattr(linear, "sweep", partial(full, sweep))
    trained = map_heads.MapHead._trained
    monkeypatch.setattr(map_heads.MapHead, "_trained", lambda *a: full(lambda device: trained(*a), device=a[-1]))
    for name in ("logistic", "map"):
        X, y, groups = drawn(HEADS[name].input, n=120)
        with heard() as lines:
            head = make_head(name, device="torch-cpu").fit(X, y, groups)
        assert head.device_ == "cpu"
        assert len(lines) == 1 and "do not fit the memory of torch-cpu" in lines[0], "said once, not for every solution"
        assert np.array_equal(head.predict_proba(X), make_head(name).fit(X, y, groups).predict_proba(X))


def test_a_network_of_a_bundle_takes_what_fits() -> None:
    """Where a GPU has no memory for all images at once it gets fewer; the logits are those of each image."""
    sizes = []

    def mean(X: torch.Tensor) -> torch.Tensor:
        sizes.append(len(X))
        if len(X) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return X.mean((2, 3))

    part: Any = SimpleNamespace(networks=(0,), precision="float32")
    maps, network = np.random.default_rng(0).normal(size=(7, 2, 4, 4)).astype(np.float32), cast("Ensemble", mean)
    found = NetworkModel(part, network, "maps/a", "cpu").proba([{"maps/a": maps}])
    np.testing.assert_allclose(found, probabilities(maps.mean((2, 3), dtype=np.float64)), atol=1e-6)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_the_cores_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a node's cores those that SLURM or a container gives, and not processes for all of them."""
    share = tmp_path / "cpu.max"
    monkeypatch.setattr("features.devices._SHARE", share)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert cores() == 16
    for text, expected in (("max 100000", 16), ("800000 100000", 8), ("150000 100000", 2), ("6400000 100000", 16)):
        share.write_text(f"{text}\n")
        assert cores() == expected


def test_auto_is_a_gpu_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the driver, on torch and on how many numbers there are; a GPU that is named must be there."""
    few, many = 1_000, 100_000_000
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for driver, usable, expected in ((False, True, "cpu"), (True, False, "cpu"), (True, True, "cuda")):
        monkeypatch.setattr("features.devices._has_driver", lambda driver=driver: driver)
        monkeypatch.setattr("torch.cuda.is_available", lambda usable=usable: usable)
        assert device_for("auto", many) == expected
        assert device_for("auto", few) == device_for("cpu", many) == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_for("cuda:1", few) == "cuda:1"
    with pytest.raises(FirnError, match=r"one of 2 GPUs, got cuda:2; run again with DEVICE=cuda$"):
        device_for("cuda:2", many)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FirnError, match=r"no usable CUDA device .*; run again with DEVICE=cpu"):
        device_for("cuda", few)
    for name in ("tpu", "cuda:", "cuda:x", "cpu:0"):
        with pytest.raises(UnknownName, match=f"unknown device '{name}'"):
            device_for(name, few)


def test_a_run_records_its_device(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train-heads DEVICE=` reaches the heads; the record names another device than the CPU, and only that."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    extract(str(spots), NET, precision="float32", device="cpu")
    train: Any = partial(train_heads, str(spots), NET, heads="logistic lda", precision="float32")
    for more in ({}, {"precision": "auto"}):  # with a GPU auto would be another entry, which is not what is wrong
        with pytest.raises(FirnError, match="no usable CUDA device"):
            train(device="cuda", **more)
    monkeypatch.setattr("models.heads.head.device_for", lambda wanted, numbers: f"torch-{wanted}")
    folders = [Path(line.split()[-1]) for line in train(device="cpu")]
    records = [load_record(folder) for folder in folders]
    assert [record and record.device for record in records] == ["torch-cpu", "cpu"]
    told = ["device" in json.loads((folder / "run.json").read_text()) for folder in folders]
    assert told == [True, False]
