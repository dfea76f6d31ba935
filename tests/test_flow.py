"""The road as a user goes it: command by command, with right and with wrong input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from conftest import draw, stored

ROOT = Path(__file__).parents[1]


def pipeline(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline` and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_road(tmp_path: Path) -> None:
    """extract, train-heads, compare on drawn images; twice, the second time as a no-op."""
    folder = draw(tmp_path / "spots", per_class=24, test=8)
    on = ("--dataset", str(folder), "--backbone", "squeezenet1_1")
    first = pipeline("extract", *on, "--maps", "1")
    assert first.stdout.startswith(f"ready: {stored('spots')} squeezenet1_1 64 images")
    assert "forward" in first.stderr
    again = pipeline("extract", *on, "--maps", "1")
    assert again.stdout == first.stdout
    assert "forward" not in again.stderr, "ready means that nothing is done"

    heads = ("logistic", "lightgbm", "map", "stack")  # `make demo`, run by another test, trains them all
    trained = pipeline("train-heads", *on, "--heads", " ".join(heads)).stdout.splitlines()
    assert tuple(line.split()[1] for line in trained) == heads
    runs = [Path(line.split()[-1]) for line in trained]
    stamps = [(run / "run.json").stat().st_mtime_ns for run in runs]
    pipeline("train-heads", *on, "--heads", " ".join(heads))
    assert [(run / "run.json").stat().st_mtime_ns for run in runs] == stamps, "runs that are there are not repeated"

    shown = pipeline("compare", "--dataset", str(folder)).stdout
    assert all(name in shown for name in ("logistic", "lightgbm", "map", "stack of 3 runs"))
    page = Path(shown.split()[-1])
    assert page.is_file()
    results = json.loads((page.parent / "results.json").read_text())
    assert len(results["runs"]) == len(heads)
    with (page.parent / "predictions.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(heads) * 64
    for name in ("roc.svg", "roc.png", "pr.svg", "pr.png"):
        assert (page.parent / name).stat().st_size > 1000

    (folder / "train" / "spot" / "train000.png").unlink()
    stale = pipeline("train-heads", *on, expect=2).stderr
    assert "run: make extract DATASET=" in stale


def test_features_are_read_without_firn(tmp_path: Path) -> None:
    """A process that knows h5py only reads names, labels and features."""
    folder = draw(tmp_path / "spots")
    shown = pipeline("extract", "--dataset", str(folder), "--backbone", "squeezenet1_1").stdout
    master = shown.split()[-1]
    code = (
        "import sys, h5py\n"
        "with h5py.File(sys.argv[1]) as f:\n"
        "    X = f['pooled/features.12/avg'][...]\n"
        "    print(X.shape, X.dtype, f['ids'][0].decode(), f['labels'][...].sum(), bool((X > 0).any()))\n"
        "assert not {'features', 'models', 'torch'} & set(sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / master)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "(32, 512) float16 test/normal/test000.png 16 True"
    with h5py.File(ROOT / master) as file:
        assert file.attrs["about"].startswith("Firn features")


WRONG = [
    (["extract", "--dataset", "pneumonai"], "unknown data"),
    (["extract", "--dataset", "pneumonia"], "pneumonia"),
    (["extract", "--dataset", "SPOTS", "--backbone", "resnet05"], "did you mean resnet50"),
    (
        ["extract", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--weights", "none.pth"],
        "no weights file none.pth",
    ),
    (["extract", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--preprocess", "stretch"], "unknown preprocess"),
    (["extract", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--precision", "int8"], "unknown precision"),
    (["extract", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--device", "tpu"], "unknown device"),
    (["extract", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--maps", "layer4"], "unknown block 'layer4'"),
    (["train-heads", "--dataset", "SPOTS", "--backbone", "squeezenet1_1"], "run: make extract"),
    (
        ["train-heads", "--dataset", "SPOTS", "--backbone", "squeezenet1_1", "--heads", "forest"],
        "unknown head 'forest'",
    ),
    (["compare", "--dataset", "SPOTS"], "run: make extract train-heads"),
    (["fly"], "unknown command 'fly'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str, spots: Path) -> None:
    """Exit code 2, the reason on stderr, nothing on stdout."""
    done = pipeline(*(str(spots) if a == "SPOTS" else a for a in arguments), expect=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) <= 4


def test_read_only_artifacts(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that cannot be written is named, with the variable that moves it."""
    monkeypatch.setenv("FIRN_ARTIFACTS", "/proc/firn")
    done = pipeline("extract", "--dataset", str(spots), "--backbone", "squeezenet1_1", expect=2)
    assert "/proc/firn" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_file_size_limit_ends_in_one_line(tmp_path: Path) -> None:
    """A disk that takes no more: exit code 2, what was committed is read by the next run, which ends well."""
    folder = draw(tmp_path / "set", per_class=60, test=10)
    command = (
        f"ulimit -f 120; exec {sys.executable} -m pipeline extract --dataset {folder} --backbone squeezenet1_1 --maps 1"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "file-size limit" in done.stderr
    assert "Traceback" not in done.stderr
    after = pipeline("extract", "--dataset", str(folder), "--backbone", "squeezenet1_1", "--maps", "1")
    assert after.stdout.startswith(f"ready: {stored('set')} squeezenet1_1 140 images")


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """Ctrl-C in the middle of an extraction: one line, exit code 130, and the next run goes on."""
    import signal
    import time

    folder = draw(tmp_path / "set", per_class=300, test=10)
    command = [sys.executable, "-m", "pipeline", "extract", "--dataset", str(folder), "--backbone", "squeezenet1_1"]
    child = subprocess.Popen([*command, "--precision", "float32"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    cache = Path(os.environ["FIRN_ARTIFACTS"]) / "cache"
    deadline = time.monotonic() + 120
    while not list(cache.rglob("pooled-*.h5")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130, said
    assert "interrupted; what was done is kept" in said
    assert "Traceback" not in said
    after = pipeline(*command[3:], "--precision", "float32")
    assert "620 images" in after.stdout
