"""README is true: its commands run, its tables name every row, its targets exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED, draw, needs_images, needs_weights

from features.backbones import BACKBONES
from features.datasets import DATASETS
from models.heads import HEADS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
NOT_TWICE = ("make test", "make check")  # the one that runs this test, and the one beside it


def run(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a README command in the repository with this interpreter."""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")} | variables
    command = re.sub(r"\bmake\b", f"make PYTHON={sys.executable}", command, count=1)
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, env=surroundings)


@pytest.fixture
def few_real_images(tmp_path: Path) -> Path:
    """Return a data folder with 24 + 8 real images per class of pneumonia, cervical and colon."""
    for name in ("pneumonia", "cervical", "colon"):
        source = SHARED / "data" / name
        for folder in sorted(p for p in source.glob("*/*") if p.is_dir()):
            target = tmp_path / "data" / folder.relative_to(SHARED / "data")
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[: 24 if "train" in str(folder) else 8]:
                shutil.copy(image, target)
        if (source / "files.csv").exists():
            shutil.copy(source / "files.csv", tmp_path / "data" / name / "files.csv")
    return tmp_path / "data"


@needs_images
@needs_weights
def test_commands_run(few_real_images: Path, tmp_path: Path) -> None:
    """Every command of README, in its order, on a few real images and with real weights."""
    assert len(COMMANDS) >= 6
    draw(few_real_images / "my_images", per_class=12, test=4)
    for command in COMMANDS:
        if command in (*NOT_TWICE, "make demo") or not re.search(r"\bmake\b", command):
            continue
        command = re.sub(r"=\S+/my_images", f"={few_real_images / 'my_images'}", command)
        command = re.sub(r"FIRN_\w+=\S+ ", "", command)
        done = run(command, FIRN_DATA=str(few_real_images), FIRN_WEIGHTS=str(SHARED / "weights"))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_demo(tmp_path: Path) -> None:
    """`make demo` without data: a page, and a best AUC that is neither broken nor trivial."""
    assert "make demo" in COMMANDS
    done = run("make demo")
    assert done.returncode == 0, done.stderr
    page = Path(os.environ["FIRN_ARTIFACTS"]) / "compare" / "phantom" / "report.html"
    assert str(page) in done.stdout
    assert "synthetic" in page.read_text()
    results = json.loads((page.parent / "results.json").read_text())
    areas = [run["test"]["roc_auc"]["value"] for run in results["runs"]]
    assert 0.75 <= max(areas) <= 0.99
    assert len(areas) == len(HEADS)


@pytest.mark.parametrize("name", [*DATASETS, *BACKBONES, *HEADS])
def test_every_row_is_named(name: str) -> None:
    """README names every data set, backbone and head."""
    assert re.search(rf"`{re.escape(name)}`", README), name


def test_targets_and_commands_belong_together() -> None:
    """Every target that README or `make help` shows exists, and each verb of the command line is a target."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    shown = run("make").stdout
    assert all(f"make {target} " in shown for target in targets)
    verbs = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", verbs, re.MULTILINE)
    assert commands
    assert set(commands) <= targets


def test_variables_are_flags() -> None:
    """Each variable of the Makefile is a flag of the verbs that take it, under the same name."""
    common = "DATASET=a BACKBONE='b c' DEVICE=cpu PRECISION=float32 PREPROCESS=pad SEED=3"
    of_verbs = "HEADS=d BLOCKS=1 POOL=max MAPS=1 BATCH_SIZE=8 WORKERS=2 ENGINE=ray"
    shown = run(f"make -n extract train-heads compare {common} {of_verbs}").stdout
    extract, train, compare = shown.strip().splitlines()
    for flag in ("--dataset 'a'", "--backbone 'b c'", "--seed '3'"):
        assert all(flag in line for line in (extract, train, compare))
    for flag in (
        "--maps '1'",
        "--device 'cpu'",
        "--batch-size '8'",
        "--workers '2'",
        "--preprocess 'pad'",
        "--engine 'ray'",
    ):
        assert flag in extract
    for flag in ("--heads 'd'", "--blocks '1'", "--pool 'max'", "--precision 'float32'"):
        assert flag in train


def test_links_and_images_exist() -> None:
    """Relative links of README lead to files of the repository."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
