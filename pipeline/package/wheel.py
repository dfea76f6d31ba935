"""How setuptools builds the wheel: one package `firn` that holds features, models and pipeline under its own name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = run_path(str(HERE / "renaming.py"))  # setuptools runs this file by itself, outside any package
VERSION = run_path(str(ROOT / "features" / "version.py"))
FACE = {"__init__.py": HERE / "public.py", "__main__.py": HERE / "__main__.py"}
WITH_NAMES = {".py", ".j2", ".js"}


def sources() -> Iterator[tuple[str, Path]]:
    """Yield each file of the package, by its name below `firn`."""
    yield from FACE.items()
    for stage in NAMES["STAGES"]:
        for path in sorted((ROOT / stage).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and HERE not in path.parents:
                yield path.relative_to(ROOT).as_posix(), path


class BuildFirn(build_py):  # type: ignore[misc]  # setuptools brings no types
    """Writes the package; an editable install is left to setuptools, which links `firn` to this folder."""

    def run(self) -> None:
        """Write all files under their names below `firn`."""
        if self.editable_mode:
            super().run()
            return
        package, verbs = Path(self.build_lib) / "firn", NAMES["verbs_in"](ROOT / "pipeline")
        shutil.rmtree(package, ignore_errors=True)
        for name, path in sources():
            target = package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in WITH_NAMES:
                target.write_text(NAMES["renamed"](path.read_text(encoding="utf-8"), verbs), encoding="utf-8")
            else:
                shutil.copyfile(path, target)
        (package / "features" / VERSION["COMMIT"].name).write_text(VERSION["commit_of"](ROOT))

    def get_source_files(self) -> list[str]:
        """Return what a source distribution has to hold."""
        folders = [HERE.rglob("*.py"), *((path,) for _, path in sources())]
        return sorted({path.relative_to(ROOT).as_posix() for paths in folders for path in paths})
