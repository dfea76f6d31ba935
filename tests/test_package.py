"""Installed with pip, Firn is one import name and one command, anywhere; its documents for Python are true."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw

from features.options import ExtractOptions, leaves
from pipeline.arguments import Typed
from pipeline.package.renaming import STAGES, renamed, verbs_in

ROOT = Path(__file__).parents[1]
NET = "BACKBONE=squeezenet1_1 PRECISION=float32"
EDITABLE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("firn", {str(ROOT / "pipeline" / "package" / "__init__.py")!r})
firn = sys.modules["firn"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(firn)
"""  # what the finder of an editable install does


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip has installed a copy of the repository, without what it depends on."""
    copy, site = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("site")
    for stage in STAGES:
        shutil.copytree(ROOT / stage, copy / stage, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    how = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, "--target", str(site), str(copy)], check=True)
    return site


def outside(site: Path, command: str, place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a place outside the checkout, where Firn is installed; warnings are errors."""
    own = {"PYTHONPATH": str(site), "PATH": f"{site / 'bin'}:{os.environ['PATH']}", "MPLBACKEND": "Agg"}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("FIRN_GIVEN")} | own | more
    return subprocess.run(["bash", "-c", command], cwd=place, env=surroundings, capture_output=True, text=True)


def imported(path: Path) -> set[str]:
    """Return the top-level names that a module imports, anywhere in it."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in names | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_one_name_with_all_files(site: Path) -> None:
    """Nothing but `firn` is claimed; it holds every file of the three folders, and imports none of them by its name."""
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} == {"firn", "bin"}
    assert [p.name for p in (site / "bin").iterdir()] == ["firn"]
    here = {p.relative_to(ROOT) for stage in STAGES for p in (ROOT / stage).rglob("*") if p.is_file()}
    kept = {p for p in here if "__pycache__" not in p.parts and p.parts[:2] != ("pipeline", "package")}
    there = {p.relative_to(site / "firn") for p in (site / "firn").rglob("*") if p.is_file()}
    faces = {Path("__init__.py"), Path("__main__.py"), Path("features/COMMIT")}
    assert {p for p in there if "__pycache__" not in p.parts} == kept | faces
    modules = [*(site / "firn").rglob("*.py")]
    assert not set.union(*map(imported, modules)) & set(STAGES)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("from features.views import View", "from firn.features.views import View"),
        ("    import models.heads as h", "    import firn.models.heads as h"),
        ("import features.images.jpeg_plugin  # noqa", "import firn.features.images.jpeg_plugin  # noqa"),
        ("from pipeline import cli\n", "from firn.pipeline import cli\n"),
        ("from features that differ", "from features that differ"),
        ("import numpy as features", "import numpy as features"),
        ('"features.12"', '"features.12"'),
        ("run: make cache-repair; or make doctor", "run: firn cache-repair; or firn doctor"),
        ("see: python -m pipeline x --help", "see: firn x --help"),
        ("what make exports, make a folder", "what make exports, make a folder"),
    ],
)
def test_renamed(text: str, other: str) -> None:
    """Imports and commands have the package's names; prose and names of blocks stay."""
    assert renamed(text, verbs_in(ROOT / "pipeline")) == other


def test_an_editable_install_is_the_same(site: Path, tmp_path: Path) -> None:
    """It offers the same names, from the checkout's own files, and leaves features, models and pipeline to others."""
    (tmp_path / "models.py").write_text("a user's own module")
    ask = "print(sorted(firn.__all__), firn.__doc__, firn.features.errors.command('extract', A='$'))\n"
    own = f"assert not {{*{STAGES}}} & {{*sys.modules}}\nprint(firn.features.__file__)"
    (tmp_path / "editable.py").write_text(f"{EDITABLE}import firn.features.errors\n{ask}{own}")
    (tmp_path / "installed.py").write_text(f"import firn.features.errors\n{ask}")
    *said, file = outside(site, f"{sys.executable} editable.py", tmp_path).stdout.splitlines()
    assert said == outside(site, f"{sys.executable} installed.py", tmp_path).stdout.splitlines()
    assert "firn extract A='$'" in said[-1]
    assert Path(file).is_relative_to(ROOT)


def test_the_command_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    """What it suggests runs as it stands, several verbs in one line too; a bundle predicts in yet another folder."""
    draw(tmp_path / "my spots", per_class=10)
    asked = outside(site, f"firn train-heads 'DATASET=my spots' {NET} HEADS=lda", tmp_path)
    assert asked.returncode == 2, asked.stderr
    hint = asked.stderr.rpartition("run: ")[2].strip()
    assert hint.startswith("firn extract DATASET='my spots' ")
    lines = (hint, f"firn train-heads bundle 'DATASET=my spots' {NET} HEADS=lda OUT=spots.zip")
    for line in lines:
        done = outside(site, line, tmp_path)
        assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done = outside(site, "firn predict --model ../spots.zip '--images=../my spots/test' --out found", elsewhere)
    assert done.returncode == 0, done.stderr
    assert len((elsewhere / "found" / "predictions.csv").read_text().splitlines()) == 9
    assert not {"features", "models", "pipeline"} & {p.name for p in elsewhere.iterdir()}


def test_version_help_and_completion(site: Path, tmp_path: Path) -> None:
    """The version is that of the package; the shell completes verbs and their flags."""
    assert re.fullmatch(r"firn \d+\.\d+\.\d+\S*\n", outside(site, "firn --version", tmp_path).stdout)
    assert "--install-completion" in outside(site, "firn --help", tmp_path).stdout
    asked = {"_FIRN_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert outside(site, "firn", tmp_path, COMP_WORDS="firn extr", **asked).stdout.split() == ["extract"]
    offered = outside(
        site, "firn", tmp_path, COMP_WORDS="firn extract --", **asked | {"COMP_CWORD": "2"}
    ).stdout.split()
    assert {f"--{field.name.replace('_', '-')}" for field, _ in leaves(ExtractOptions)} < {*offered}


@pytest.mark.parametrize(
    ("words", "variables", "rest"),
    [
        ("--strict DATASET=a --backbone B=c", {"DATASET": "a"}, ["--strict", "--backbone", "B=c"]),
        ("--dataset A=b --config C=d.toml", {}, ["--dataset", "A=b", "--config", "C=d.toml"]),
        ("DATASET=a=b --dataset=C=d", {"DATASET": "a=b"}, ["--dataset=C=d"]),
    ],
)
def test_words_of_a_command_line(words: str, variables: dict[str, str], rest: list[str]) -> None:
    """NAME=value is a variable, unless it is what a flag is given."""
    assert Typed.of(["extract", *words.split()]) == Typed(["extract"], variables, rest)


RAY = """
import firn.features.ray_cluster as ray_cluster

class Ray:
    def init(self, **options):
        print(options["runtime_env"]["env_vars"]["PYTHONPATH"])
    def cluster_resources(self):
        return {}
    def shutdown(self):
        pass

with ray_cluster.cluster(Ray()):
    pass
"""


def test_workers_of_ray_find_it(site: Path, tmp_path: Path) -> None:
    """They look for `firn` in the folder that holds it, and not inside it for `features`."""
    (tmp_path / "ask.py").write_text(RAY)
    assert outside(site, f"{sys.executable} ask.py", tmp_path).stdout.strip() == str(site)


RUN = """
import json, re, sys
from pathlib import Path

def cells(path):
    text = Path(path).read_text()
    if path.endswith(".md"):
        return re.findall(r"```python\\n(.*?)```", text, re.DOTALL)
    return ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]

for path in sys.argv[1:]:
    names = {}
    for number, cell in enumerate(cells(path)):
        exec(compile(cell, f"{path}, block {number}", "exec"), names)
"""


def test_documents_run(site: Path, tmp_path: Path) -> None:
    """Every block of docs/python.md, then every cell of the notebook, outside the checkout, warnings as errors."""
    documents = [ROOT / "docs" / name for name in ("python.md", "example.ipynb")]
    (tmp_path / "run.py").write_text(RUN)
    done = outside(site, f"{sys.executable} -W error run.py {' '.join(map(str, documents))}", tmp_path)
    assert done.returncode == 0, done.stderr
    heads = {path.parent.name for path in Path(os.environ["FIRN_ARTIFACTS"]).rglob("run.json")}
    assert heads == {"logistic", "lda", "knn", "svm", "naive-bayes"}
