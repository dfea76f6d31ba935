"""CONFIG=: variables in a file mean what they mean when they are typed, and what is typed wins."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from conftest import draw
from runs_for_tests import draw_runs
from test_commands import type_in

from features.errors import FirnError
from features.options import DatasetOptions, in_a_file, make_command
from models.runs.compare import compare_runs
from pipeline.arguments import configured
from pipeline.render.html_page import render_page

NET = 'BACKBONE = ["squeezenet1_1"]\nPRECISION = "float32"\n'


def written(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


def test_values_as_they_are_typed(tmp_path: Path) -> None:
    """Texts, whole numbers, fractions, truth and lists."""
    text = 'DATASET = "my $images"\nMAPS = 1\nRATE = 1e-4\nOVERLAYS = true\nYES = false\nHEADS = ["lda", "knn"]\n'
    assert configured(str(written(tmp_path / "c.toml", text))) == {
        "DATASET": "my $images",
        "MAPS": "1",
        "RATE": "0.0001",
        "OVERLAYS": "1",
        "YES": "0",
        "HEADS": "lda knn",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EPOCS = 3", r"no command takes EPOCS \(did you mean EPOCHS\?\)"),
        ('dataset = "x"', r"no command takes dataset \(did you mean DATASET\?\)"),
        ("[DATASET]\nname = 1", "expected DATASET to be a text"),
        ("DATASET = nothing", "does not read"),
        ("SEED = true", "expected SEED to be a text, a number or a list of these, got true"),
        ("SEED = 2020-01-01", "expected SEED to be a text"),
        ('BACKBONE = ["alexnet", {a = 1}]', "expected BACKBONE to be a text"),
        ('HEADS = [["lda"]]', "expected HEADS to be a text"),
        ("OVERLAYS = [true]", "expected OVERLAYS to be true, false, 1 or 0"),
        ('CONFIG = "other.toml"', "no command takes CONFIG"),
    ],
)
def test_what_is_refused(text: str, words: str, tmp_path: Path) -> None:
    """Unknown names, with the nearest one; what is no value; what is no TOML."""
    with pytest.raises(FirnError, match=words):
        configured(str(written(tmp_path / "c.toml", text)))
    with pytest.raises(FirnError, match=r"none\.toml does not read: No such file or directory$"):
        configured(str(tmp_path / "none.toml"))
    with pytest.raises(FirnError, match=r"does not read: Is a directory$"):
        configured(str(tmp_path))


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    """In a file as in a command that is suggested; 5.0 is 5 where a whole number is expected."""
    text = "RATE = 0.1234567891\nTEST = 0.3\nEPOCHS = 5.0\nMARGIN = 1e-7\nPREVALENCE = [0.12345678, 0.5]\n"
    assert configured(str(written(tmp_path / "c.toml", text))) == {
        "RATE": "0.1234567891",
        "TEST": "0.3",
        "EPOCHS": "5",
        "MARGIN": "1e-07",
        "PREVALENCE": "0.12345678 0.5",
    }
    assert make_command("extract", DatasetOptions(test=0.23456789)) == "make extract TEST=0.23456789"


def test_each_verb_takes_its_own_and_what_is_typed_wins(tmp_path: Path) -> None:
    """Variables of other verbs are no error in a file, and are one when they are typed."""
    spots = draw(tmp_path / "spots", per_class=10)
    file = written(tmp_path / "c.toml", f'{NET}DATASET = "nowhere"\nHEADS = "logistic"\nEPOCHS = 3\n')
    done = type_in(f"make extract train-heads DATASET={spots} HEADS=lda CONFIG={file}")
    assert done.code == 0, done.err
    assert "lda on squeezenet1_1" in done.out
    assert "logistic" not in done.out
    assert "next: make compare" in done.err
    refused = type_in(f"make extract DATASET={spots} EPOCHS=3 CONFIG={file}")
    assert (refused.code, "takes no EPOCHS=" in refused.err) == (2, True)


def test_commands_with_a_file_are_the_same(tmp_path: Path) -> None:
    """What commands have in common goes into the file, with its $ and quotes; the page shows both."""
    common = """DATASET='it'"'"'s $$5' SEED=3"""
    before = [f"make extract {common} MAPS='1 2'", f"make train-heads compare {common}"]
    text, after = in_a_file(before, "a.toml")
    assert tomllib.loads(text) == {"DATASET": "it's $5", "SEED": "3"}
    assert after == ["make extract CONFIG=a.toml MAPS='1 2'", "make train-heads compare CONFIG=a.toml"]
    assert configured(str(written(tmp_path / "a.toml", text))) == tomllib.loads(text)
    runs = draw_runs(strengths=(1.6,))
    page = render_page(compare_runs(runs, n_bootstrap=20), runs)
    assert "<code>DATASET = &#34;drawn&#34;</code>" in page
    assert "<code>make compare CONFIG=again.toml</code>" in page
