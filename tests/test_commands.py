"""Wrong command lines, what is suggested in answer, and what is said after right ones: typed as at make's prompt."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import draw
from runs_for_tests import draw_runs, make_run

from features.errors import LISTED, counted, listed, quoted
from features.progress import shown
from models.runs.compare import compare_runs
from models.runs.record import load_runs
from models.runs.summary import commands
from pipeline.__main__ import main
from pipeline.cli import VERBS
from pipeline.render.terminal import print_table

ROOT = Path(__file__).parents[1]
NET = "BACKBONE=squeezenet1_1 PRECISION=float32"
HINT = re.compile(r"""(?:run|instead|it): (make [a-z]+(?:[ -][a-z]+)*(?: [A-Z_]+=(?:'[^']*'|"[^"]*"|[^\s'";,)])+)*)""")
USAGE = re.compile(r"takes no|unknown command|error: expected [A-Z_]+=|has its own|is empty")


class Typed(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str


def type_in(line: str) -> Typed:
    """Run a line as make does: $$ is a dollar, NAME=value goes to each goal, the first that fails ends it."""
    words = shlex.split(line)[1:]
    given = {name: value.replace("$$", "$") for name, is_, value in (w.partition("=") for w in words) if is_}
    goals = [word for word in words if "=" not in word]
    out, err, code = io.StringIO(), io.StringIO(), 0
    for goal in goals:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**given, "FIRN_GIVEN": " ".join(given), "FIRN_GOALS": " ".join(goals)}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["pipeline", goal])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main()
        if code:
            break
    return Typed(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return paths as they are typed: drawn images below an odd name, with features and two heads, and wrong files."""
    root = tmp_path_factory.mktemp("typed") / "it's 5% of #1, é $x"
    texts = {
        "text.pth": "hello",
        "page.pth": "<!DOCTYPE html>",
        "lfs.pth": "version https://git-lfs.github.com/spec/v1",
    }
    texts |= {
        "file": "x",
        "bad.zip": "no archive",
        "empty.csv": "",
        "notes.csv": "a,b\n1,2\n",
        "half.csv": "path,label\n",
    }
    draw(root / "images", per_class=8)
    draw(root / "new", per_class=5, test=2)
    draw(root / "two", per_class=1, test=1)
    draw(root / "one" / "only", per_class=2)
    for own, name in (("normal", "healthy"), ("spot", "ill")):
        draw(root / "drawn", per_class=5, test=1, seed=7)
        shutil.copytree(root / "drawn" / "train" / own, root / "other" / name)
    (root / "empty").mkdir()
    for name, text in texts.items():
        (root / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(root / "artifacts"))
        patch.delenv("FIRN_WEIGHTS", raising=False)
        images = quoted(str(root / "images"))
        made = type_in(f"make extract train-heads DATASET={images} {NET} MAPS=1 HEADS='logistic lda'")
        assert made.code == 0, made.err
        assert type_in(f"make extract DATASET={quoted(str(root / 'two'))} {NET}").code == 0
        zipped = type_in(f"make bundle DATASET={images} OUT={quoted(str(root / 'b.zip'))}")
        assert zipped.code == 0, zipped.err
        (name,) = (path.name for path in (root / "artifacts" / "heads").iterdir())
        run = load_runs(name)[0].folder
    names = (
        "images",
        "two",
        "new",
        "other",
        "one",
        "empty",
        "nowhere",
        "b.zip",
        "nowhere.zip",
        "x.onnx",
        "x.h5",
        *texts,
    )
    found = {name.replace(".", "_"): quoted(str(root / name)) for name in names}
    yield found | {"run": quoted(str(run)), "artifacts": str(root / "artifacts"), "name": name}


@pytest.fixture(autouse=True)
def at_home(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let artifacts be those of the module."""
    monkeypatch.setenv("FIRN_ARTIFACTS", places["artifacts"])


S = f"DATASET={{images}} {NET}"
WRONG = [
    ("extract DATASET=pneumonai", "did you mean pneumonia"),
    ("extract", "no data set pneumonia at .*FIRN_DATA"),
    ("extract DATASET={nowhere}", "unknown data set .*nowhere"),
    ("extract DATASET={file}", "file is no data set; expected"),
    ("extract DATASET={empty}", "holds no class folder; expected"),
    ("extract DATASET={one} BACKBONE=squeezenet1_1", "only is no class but a data set"),
    ("extract DATASET={empty_csv}", "empty.csv, line 1: no column 'path'"),
    ("extract DATASET={half_csv}", "half.csv"),
    ("extract DATASET={b_zip}", "b.zip is no data set"),
    ("extract DATASET=", "DATASET= is empty"),
    ("extract DATSET={images}", "did you mean DATASET=.*it takes"),
    ("extract DATASET={images} HEADS=lda", "make extract takes no HEADS="),
    ("train-heads DATASET={images} HEAD=lda", "did you mean HEADS="),
    ("finetune DATASET={images} EPOCH=2", "did you mean EPOCHS="),
    ("extract DATASET={images} BACKBONE=resnet05", "did you mean resnet50"),
    ("extract DATASET={images} BACKBONE=+", r"expected BACKBONE= to name a backbone, got '\+'"),
    (
        "extract DATASET={images} BACKBONE=squeezenet1_1@other-3fa9c1",
        "not done yet; finetune squeezenet1_1 on",
    ),
    (f"extract {S} WEIGHTS=none.pth", "no weights file none.pth"),
    (f"extract {S} WEIGHTS={{text_pth}}", "is a text and no weights"),
    (f"extract {S} WEIGHTS={{page_pth}}", "page.pth is a web page"),
    (f"extract {S} WEIGHTS={{lfs_pth}}", "is a Git LFS pointer"),
    ("extract DATASET={images} BACKBONE='squeezenet1_1 alexnet' WEIGHTS={text_pth}", "WEIGHTS= fits one backbone"),
    (f"extract {S} PREPROCESS=stretch", "unknown preprocess 'stretch'"),
    ("extract DATASET={images} BACKBONE=squeezenet1_1 PRECISION=int8", "unknown precision 'int8'"),
    (f"extract {S} DEVICE=tpu", "unknown device 'tpu'"),
    (f"extract {S} MAPS=layer4", "unknown block 'layer4'"),
    (f"extract {S} MAPS=-1", "unknown block '-1'"),
    (f"extract {S} SIZE=1", "cannot see images of 1 pixels .*; give another SIZE="),
    (f"extract {S} SIZE=9999", "expected SIZE= to be a whole number from 0 to 4096, got '9999'"),
    (f"train-heads {S} HEADS=LDA", "did you mean lda"),
    (f"extract {S} BATCH_SIZE=-1", "expected BATCH_SIZE= to be a whole number from 0 up, got '-1'"),
    (f"extract {S} WORKERS=1.5", "expected WORKERS= to be a whole number from 0 up, got '1.5'"),
    (f"extract {S} SEED=abc", "expected SEED= to be a whole number from 0 to 4294967295, got 'abc'"),
    (f"train-heads {S} SEED=-1", "expected SEED= .* got '-1'"),
    (f"extract {S} STRICT=maybe", "expected STRICT= to be 1 or 0, got 'maybe'"),
    (f"extract {S} ENGINE=spark", "unknown engine 'spark'"),
    (f"extract {S} POSITIVE=ill", "unknown class 'ill'; known: normal, spot"),
    (f"extract {S} ROOT={{empty}}", "ROOT= goes with a table"),
    ("train-heads DATASET={images} BACKBONE=squeezenet1_1 PRECISION=float32 PREPROCESS=pad HEADS=lda", "are missing"),
    (f"train-heads {S} HEADS=forest", "unknown head 'forest'"),
    (f"train-heads {S} BLOCKS=17", "unknown block '17'"),
    (f"train-heads {S} POOL=median", "unknown pool 'median'"),
    (f"train-heads {S} HEADS=lda POOL=gem BLOCKS=2", "no maps of features.8"),
    (f"train-heads {S} LABELS=binary", "unknown labels 'binary'"),
    (f"train-heads {S} PROTOCOL=loo", "unknown protocol 'loo'"),
    (f"train-heads {S} BUDGET=-4", "expected BUDGET= to be a number from 0 up, got '-4'"),
    (f"train-heads {S} BUDGET=4 ENGINE=ray", "leave ENGINE= away, or BUDGET="),
    (f"train-heads {S} HEADS=stack SEED=3", "a stack needs 2 trained heads"),
    (f"finetune {S} EPOCHS=0", "got EPOCHS=0"),
    (f"finetune {S} RATE=fast", "expected RATE= to be a number, got 'fast'"),
    (f"finetune {S} RECIPE=cake", "unknown recipe 'cake'"),
    (f"finetune {S} VIEWS=0", "expected VIEWS=1 or more"),
    ("transfer SOURCE={images} TARGET={images}", "expected different data sets"),
    ("transfer SOURCE={images} TARGET={two} HEADS=map", 'take HEADS="logistic'),
    ("transfer DATASET={images}", "make transfer takes no DATASET="),
    ("compare DATASET={new} BACKBONE=squeezenet1_1", "no trained heads of new-"),
    (
        f"train-heads DATASET={{two}} {NET}",
        "class normal has 1 image to learn from, and two are needed",
    ),
    ("compare DATASET={images} LABELS=binary", "unknown labels 'binary'"),
    (
        "compare DATASET={images} BACKBONE=squeezenet1_1@x",
        "squeezenet1_1 as it was fine-tuned on x, which was",
    ),
    ("explain DATASET={images} HEADS=forest", "unknown head 'forest'"),
    ("explain DATASET={images} HEADS=knn", 'heads that have: HEADS="logistic'),
    ("explain DATASET={images} HEADS=ridge BACKBONE=squeezenet1_1", "yet that HEADS= and BACKBONE= mean, of"),
    ("explain DATASET={images} PER_ROW=1", "expected PER_ROW= to be a whole number from 2 up"),
    (f"learning-curve {S} HEADS=forest", "unknown head 'forest'"),
    (f"learning-curve {S} HEADS=stack", "expected heads that learn from features, such as HEADS=logistic, got stack"),
    (f"audit {S} LABELS=binary", "unknown labels 'binary'"),
    ("bundle DATASET={images} HEADS=forest", "unknown head 'forest'"),
    ("bundle DATASET={images} CALIBRATION=magic", "unknown calibration 'magic'"),
    ("bundle DATASET={images} OUT={images}", "is there and no bundle; take another OUT="),
    ("bundle DATASET={images} OUT={file}/x.zip", "a folder has to be there"),
    ("bundle MODEL={nowhere}", "nowhere is neither a bundle"),
    ("bundle MODEL={b_zip}", "is a bundle, and this takes the folder of the run"),
    ("predict", "expected IMAGES= to be a folder"),
    ("predict IMAGES={nowhere} MODEL={b_zip}", "no images at .*nowhere"),
    ("predict IMAGES={notes_csv} MODEL={b_zip}", "notes.csv, line 1: no column 'path'"),
    ("predict IMAGES={text_pth} MODEL={b_zip}", "no image could be read"),
    ("predict IMAGES={images} MODEL={b_zip} HEADS=knn", "is one model already, and HEADS= chooses among several"),
    ("reproduce RUN={run} BACKBONE=alexnet", "is one model already, and BACKBONE= chooses among several; leave it"),
    ("predict IMAGES={images} MODEL={bad_zip}", "bad.zip is no .zip that can be read"),
    ("predict IMAGES={images} MODEL={nowhere_zip}", "no bundle at .*nowhere.zip"),
    ("predict IMAGES={images} DATASET={images} HEADS=lda POINT=0.95x", "unknown operating point '0.95x'"),
    ("predict IMAGES={images} MODEL={b_zip} POINT=1.5", "a number from 0 to 1"),
    ("predict IMAGES={images} MODEL={b_zip} OUT={file}", "a folder has to be there"),
    ("validate DATASET={other}", "expected MODEL= to be a bundle"),
    ("validate MODEL={b_zip}", "expected DATASET= to be the labelled set"),
    ("validate MODEL={b_zip} DATASET={other}", "classes healthy, ill, and the bundle knows normal, spot; say which"),
    ("validate MODEL={b_zip} DATASET={other} MAP=healthy", "expected MAP= as pairs"),
    ("validate MODEL={b_zip} DATASET={images} SUBGROUPS=sex", "unknown column 'sex'"),
    ("compare DATASET={images} A=lda", "expected A= and B= together"),
    ("compare DATASET={images} MARGIN=small", "expected MARGIN= to be a number from 0 to 0.5, got 'small'"),
    ("compare DATASET={images} BINS=age:18", "BINS= parts a column, age, and the images have none"),
    ("export MODEL={b_zip} FORMAT=keras", "unknown format 'keras'"),
    ("export MODEL={b_zip} FORMAT=program OUT={x_onnx}", "expected OUT= to end in .pt2"),
    ("reproduce RUN=missing", "expected RUN= to be the folder of a run .*got missing"),
    ("reproduce RUN={b_zip}", "expected RUN= to be the folder of a run"),
    ("reproduce RUN={run} DEVICE=tpu", "unknown device 'tpu'"),
    ("cache-ls DATASET={nowhere}", "unknown data set"),
    ("cache-verify DATASET={file}", "file is no data set"),
    ("cache-why DATASET={images} BACKBONE=resnet05", "unknown backbone 'resnet05'"),
    ("cache-gc DATASET={images} YES=maybe", "expected YES= to be 1 or 0, got 'maybe'"),
    ("cache-gc DATASET={images} RUN={empty}", "expected RUN= to be the folder of a run"),
    (f"cache-pack {S} OUT={{text_pth}}", "give a file name that ends in .h5"),
    (f"cache-pack {S} MAPS=3", "no maps/features.5"),
    (f"cache-pack {S} OUT={{file}}/x.h5", "a folder has to be there"),
    ("report DATASET={images} PROTOCOL=loo", "unknown protocol 'loo'"),
    ("figures DATASET={images} PROTOCOL=loo", "unknown protocol 'loo'"),
    ("cache-repair DATASET={nowhere}", "unknown data set"),
    ("fly", "unknown command 'fly'"),
]


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_line_and_what_it_suggests(line: str, words: str, places: dict[str, str]) -> None:
    """Exit code 2, one line that says what was expected and what came; a suggested command then runs as it stands."""
    done = type_in(f"make {line}".format(**places))
    assert (done.code, done.out) == (2, ""), done
    (message,) = [told for told in done.err.splitlines() if told.startswith("error: ")]
    assert re.search(words, message), message
    assert message == done.err.splitlines()[-1]
    hints = HINT.findall(done.err)
    assert hints or "run: make" not in done.err
    for hint in hints:
        again = type_in(hint)
        judged = hint.startswith("make doctor") and not USAGE.search(again.err)  # a fault is its result
        assert again.code == 0 or judged, f"{hint}\n{again.err}"


def test_wrong_lines_are_of_every_verb() -> None:
    """No verb is left out; doctor tells a fault as its result."""
    assert {line.split()[0] for line, _ in WRONG} == {*VERBS, "fly"} - {"doctor"}
    assert len(WRONG) > 60


def by_make(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, through make itself."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    line = line.replace("make ", f"make PYTHON={sys.executable} ", 1)
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, env=kept)


def test_make_takes_what_is_suggested(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with quotes, blanks, percent, hash and dollar goes through shell and make, there and back."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path / "artifacts"))
    done = by_make(f"make explain HEADS=ridge BACKBONE=squeezenet1_1 SEED=5 DATASET={places['new']}")
    (hint,) = HINT.findall(done.stderr)
    assert done.returncode == 2, done.stderr
    assert all(part in hint for part in ("HEADS=ridge", "SEED=5", "$$x")), hint
    again = by_make(hint)
    assert again.returncode == 0, again.stderr
    assert f"next: make compare DATASET={places['new']} SEED=5 BACKBONE=squeezenet1_1" in again.stderr
    assert "next: make train-heads" not in again.stderr, "make goes there by itself"


def test_flags_are_told_like_variables(places: dict[str, str]) -> None:
    """`python -m pipeline`: what came behind a flag is named; an unknown flag and no command say where help is."""
    for words, told in (
        (["extract", "--seed", "abc"], "expected SEED= to be a whole number from 0 to 4294967295, got 'abc'"),
        (["extract", "--workers=-2"], "expected WORKERS= to be a whole number from 0 up, got '-2'"),
        (["extract", "--sead", "1"], "No such option: --sead"),
        (["extract", "this"], "extra argument"),
    ):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
            patch.setattr(sys, "argv", ["pipeline", *words])
            assert main() == 2
        assert told in err.getvalue()
        assert len(err.getvalue().splitlines()) == 1


def test_the_road_is_told(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From doctor to the predictions by what each command says to type next, with the variables of the first."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path / "artifacts"))
    line, road = f"make doctor DATASET={places['new']} {NET} SEED=2 POSITIVE=normal", []
    while line:
        done = type_in(line.replace("path/to/images", places["new"]))
        assert done.code == 0, f"{line}\n{done.err}"
        road.append(line.split()[1])
        named = re.findall(r"\S*\.(?:png|h5|html|csv)$|/bundles/\S*$|/heads/\S*$", done.out.rstrip(), re.MULTILINE)
        assert named, f"{line} does not say where its result is"
        line = next((told[6:] for told in done.err.splitlines() if told.startswith("next: ")), "")
    assert road == ["doctor", "extract", "train-heads", "compare", "report", "bundle", "predict"]


@pytest.mark.parametrize(
    ("line", "then"),
    [
        (f"audit {S}", "make report DATASET={images}"),
        ("explain DATASET={images} HEADS=lda", "make bundle DATASET={images} HEADS=lda"),
        (f"cache-pack {S} OUT={{x_h5}}", "make train-heads DATASET={x_h5}"),
        ("cache-repair DATASET={images} SEED=1", "make train-heads DATASET={images} SEED=1"),
    ],
)
def test_what_comes_next(line: str, then: str, places: dict[str, str]) -> None:
    """The command after the rarer ones."""
    done = type_in(f"make {line}".format(**places))
    assert done.code == 0, done.err
    assert f"next: {then}".format(**places) in done.err.splitlines()[-1]


def test_places_that_cannot_be(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts or weights that are a file, or no folder, are named."""
    for name, told in (("FIRN_ARTIFACTS", "that is a file, and a folder"), ("FIRN_WEIGHTS", "is no folder")):
        with monkeypatch.context() as patch:
            patch.setenv(name, shlex.split(places["file"])[0].replace("$$", "$"))
            done = type_in(f"make extract DATASET={places['images']} {NET}")
        assert (done.code, done.out) == (2, "")
        assert re.search(f"error: .*/file.*{told}", done.err), done.err


def test_what_is_said_is_true(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed extraction counts what was there; a set of a path is not said to be away."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path / "artifacts"))
    folder = quoted(str(draw(tmp_path / "grown", per_class=5, test=2)))
    assert "14 images" in type_in(f"make extract DATASET={folder} {NET}").err
    more = draw(tmp_path / "more", per_class=2, test=0, seed=9) / "train" / "spot"
    for image in more.iterdir():
        shutil.copy(image, tmp_path / "grown" / "train" / "spot" / f"new-{image.name}")
    assert "2 images in" in (told := type_in(f"make extract DATASET={folder} {NET}").err)
    assert "14 were there already, 0 left out" in told
    assert "not compared: DATASET= gives its path" in type_in("make cache-ls").out
    done = type_in(f"make export MODEL={places['b_zip']} FORMAT=program")
    assert done.code == 0, done.err
    assert "leads to no path" in done.err
    done = type_in(f"make cache-gc DATASET={folder}")
    assert "kept" not in done.out


def test_a_stack_costs_what_its_runs_cost(places: dict[str, str]) -> None:
    """Its seconds are those of its runs and its own."""
    assert type_in(f"make train-heads {S} HEADS='logistic lda stack'".format(**places)).code == 0
    runs = {run.record.head: run.record for run in load_runs(places["name"])}
    stacks = [run.record for run in load_runs(places["name"]) if run.record.bases]
    assert runs.keys() >= {"logistic", "lda", "stack"}
    for stack in stacks:
        assert stack.seconds["oof"] > runs["logistic"].seconds["oof"] + runs["lda"].seconds["oof"]


def test_a_stack_is_made_again_of_its_own_runs() -> None:
    """Its command comes after those of its runs and before those of all others."""
    knn, lda, mlp = draw_runs(strengths=(1, 1, 1))
    bases = tuple(f"{run.record.entry}/layer4-avg/{run.record.head}" for run in (knn, lda))
    stack = make_run(knn.predictions, "stack", bases=bases, view="2 runs")
    lines = commands([run.record for run in (mlp, stack, lda, knn)], seed=0)
    order = [re.search(r"HEADS=('[^']*'|\S+)", line) for line in lines if "train-heads" in line]
    assert [found and found[1] for found in order] == [
        f"'{knn.record.head} {lda.record.head}'",
        "stack",
        mlp.record.head,
    ]


@pytest.mark.parametrize("width", [72, 80, 100])
def test_names_are_whole_at_80_columns(width: int) -> None:
    """No run's name is broken in a word, and no line is wider than the terminal."""
    from rich.console import Console

    file = io.StringIO()
    runs = draw_runs(strengths=(1.6, 1.2), backbone="mobilenet_v3_small+squeezenet1_1")
    print_table(compare_runs(runs, n_bootstrap=20), Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert any("mobilenet_v3_small+squeezenet1_1" in line for line in lines)
    assert all(len(line) <= width for line in lines)


def test_bars_do_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar with a long name takes one line of 80 columns."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with shown("lightgbm on mobilenet_v3_small+squeezenet1_1 features.8+features.12 both", "fits") as progress:
        progress(3, 6)
    bars = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    assert any("3/6" in bar and "lightgbm" in bar for bar in bars), bars
    assert all(len(bar) <= 80 for bar in bars)


def test_progress_that_may_end_early_says_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Early stopping leaves batches out, which the time left counts."""
    clock = iter((0.0, 5.0, 20.0))
    monkeypatch.setattr("features.progress.time.monotonic", lambda: next(clock))
    with shown("finetune", "batches", at_most=True) as progress:
        progress(1, 40)
        progress(11, 40)
    assert capsys.readouterr().err == "finetune: 11 of 40 batches, 0.6/s, 53 s left at most\n"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_what_may_not_be_written_says_which_place_to_change(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FIRN_ARTIFACTS moves what is below it, and nothing else: not images or weights that may not be read."""

    def fail() -> int:
        raise OSError(code, os.strerror(code), source, None, target)

    monkeypatch.setattr("pipeline.arguments.run", fail)
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path / "results"))
    source, below, beside = (str(tmp_path / name) for name in ("it", "results/x", "results2"))
    for target, advice in ((below, "set FIRN_ARTIFACTS to a folder"), (beside, "have that changed, or name another")):
        assert main() == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {target}: "), said  # of two paths the one that is written
        assert advice in said


def test_numbers_of_things_and_long_lists() -> None:
    """One image is no images, and of hundreds of classes a message names the first."""
    assert [counted(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    names = [f"c{i}" for i in range(LISTED + 5)]
    assert listed(names[:LISTED]) == ", ".join(names[:LISTED])
    assert listed(names) == ", ".join(names[:LISTED]) + " and 5 more"
