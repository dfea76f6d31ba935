"""The road is one way: pipeline -> models -> features, and the fast verbs import no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import VERBS

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "features": {"features"},
    "models": {"features", "models"},
    "pipeline": {"features", "models", "pipeline"},
}
MODULES = [p for package in MAY_IMPORT for p in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Return the top-level names that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    """No stage imports a later one."""
    package = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(MAY_IMPORT) <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    """A module has a docstring, at most 450 lines, and its public functions have docstrings too."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 450
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    methods = [m for c in public if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)]
    for node in [*public, *(m for m in methods if not m.name.startswith("_"))]:
        assert ast.get_docstring(node), node.name


def test_no_circle_of_files() -> None:
    """Files import one another in one direction only, within functions and for types too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (inner & names.keys()) or ({str(node.module)} & names.keys())
    TopologicalSorter({name: imported - {name} for name, imported in graph.items()}).prepare()


def test_pipeline_holds_verbs() -> None:
    """One file per command, the command line beside them; every noun lives in the stage that it belongs to."""
    verbs = {"cache" if name.startswith("cache-") else name.replace("-", "_") for name in VERBS}
    assert {path.stem for path in (ROOT / "pipeline").glob("*.py")} == verbs | {
        "__init__",
        "__main__",
        "arguments",
        "cli",
    }


def test_functions_are_short() -> None:
    """Half of them have at most 10 lines beside the docstring, nine of ten at most 20."""
    lengths = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                words = int(first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
                lengths.append(int(node.end_lineno or 0) - node.lineno + 1 - words)
    half, most = np.quantile(lengths, [0.5, 0.9])
    assert (half <= 10, most <= 20) == (True, True), (half, most)


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.__main__",
        "pipeline.package.public",
        "features.datasets",
        "features.cache",
        "features.views",
        "models.heads",
        "models.metrics",
    ],
)
def test_no_torch_where_none_is_needed(module: str) -> None:
    """These import without torch, so that a no-op answers in under a second."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_packages_come_from_this_repository() -> None:
    """A distribution called `features` or `models` in site-packages does not win."""
    code = "import features, models, pipeline; print(features.__file__, models.__file__, pipeline.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert all(Path(p).is_relative_to(ROOT) for p in shown.stdout.split())
