from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from features.storage import remove_leftovers_of, temporary_name

ROOT = Path(__file__).parents[1]


def name_of_a_dead_process(target: Path) -> Path:
    program = (
        "import pathlib, sys; from features.storage import temporary_name; "
        "print(temporary_name(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(target)]
    return Path(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip())


def test_dead_files_and_folders_of_the_target_go_and_all_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "odd~[name]"
    folder, file = name_of_a_dead_process(target), name_of_a_dead_process(target)
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "p.png").touch()
    file.touch()
    kept = {temporary_name(target), name_of_a_dead_process(tmp_path / "other"), tmp_path / ".odd.tmp", target}
    for path in kept:
        path.touch()
    remove_leftovers_of(target)
    assert set(tmp_path.iterdir()) == kept


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers_of(tmp_path / "none" / "target")
