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
from features.options import make_command
from models.heads import HEADS
from pipeline.cli import CONFIG, VERBS, fields_of, load_verb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README + REFERENCE, re.DOTALL)
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
    """Every command of README and of the reference, in its order, on a few real images and with real weights."""
    assert {word for command in COMMANDS for word in command.split()} >= set(VERBS)
    draw(few_real_images / "my_images", per_class=12, test=4)
    for command in COMMANDS:
        if command in (*NOT_TWICE, "make demo") or not re.search(r"\bmake\b", command):
            continue
        command = re.sub(r"=\S+/my_images", f"={few_real_images / 'my_images'}", command)
        command = re.sub(r"FIRN_\w+=\S+ |(?<=BUDGET=)\d", "", command)
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
    """The reference names every data set, backbone and head."""
    assert re.search(rf"`{re.escape(name)}`", REFERENCE), name


def test_targets_and_commands_belong_together() -> None:
    """Every target that README or `make help` shows exists, and each verb of the command line is a target."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", "".join(BLOCKS))) <= targets
    shown = run("make").stdout
    assert all(f"make {target} " in shown for target in targets)
    verbs = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", verbs, re.MULTILINE)
    assert commands
    assert set(commands) <= targets


def test_commands_in_all_documents_are_accepted() -> None:
    """Every command in docs/ has targets that are there and variables that they take."""
    seen = 0
    for path in sorted((ROOT / "docs").glob("*.md")):
        for targets, given in re.findall(r"\bmake ((?:[a-z-]+ )*[a-z-]+)((?: [A-Z_]+=\S+)+)", path.read_text()):
            names = [name for name in targets.split() if name in VERBS]
            if not names:
                continue
            taken = {CONFIG, *(field.name.upper() for name in names for field in fields_of(load_verb(name)))}
            assert set(re.findall(r"\b([A-Z_]+)=", given)) <= taken, (path.name, targets, given)
            seen += 1
    assert seen > 40


def test_every_variable_is_in_the_reference() -> None:
    """What a verb takes is named in the reference, and nothing else is."""
    taken = {CONFIG, *(field.name.upper() for name in VERBS for field in fields_of(load_verb(name)))}
    rows = re.findall(r"^\| (.*?) \|", REFERENCE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)", row)}
    assert named == taken


def test_make_hands_on_its_command_line(tmp_path: Path) -> None:
    """Values reach the verb as they were typed; nothing that is not on the command line does."""
    odd = tmp_path / 'it\'s 5% of #1, "x" y'
    done = run(f"make doctor {make_command('', dataset=str(odd)).split(maxsplit=1)[1]}", BACKBONE="nothing")
    assert done.returncode == 2
    assert repr(str(odd)) in done.stderr
    assert "BACKBONE= of the environment is not used" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("make extract DATSET=phantom", "did you mean DATASET=?"),
        ("make extract train-heads EPOCH=2 DATASET=phantom", "takes no EPOCH="),
        ("make demo DATASET=colon", "make demo has its own DATASET="),
        ("make extract DATASET=", "DATASET= is empty"),
        ("make cache-gc DATASET=phantom YES=maybe", "expected YES= to be 1 or 0, got 'maybe'"),
        ("make predict", "expected IMAGES= to be"),
    ],
)
def test_a_variable_that_no_target_takes_is_an_error(command: str, words: str) -> None:
    """Exit code 2, the nearest name, nothing done."""
    done = run(command)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert not (Path(os.environ["FIRN_ARTIFACTS"]) / "cache").exists()


@pytest.mark.parametrize("no", ["0", "no", "false"])
def test_no_means_no(no: str) -> None:
    """YES=0 removes nothing."""
    done = run(f"make cache-gc DATASET=phantom YES={no}")
    assert done.returncode == 0, done.stderr
    assert "nothing to remove" in done.stdout


def test_links_and_images_exist() -> None:
    """Relative links of README lead to files of the repository."""
    for place, text in ((ROOT, README), (ROOT / "docs", REFERENCE)):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (place / target).exists(), target
