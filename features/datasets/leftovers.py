"""What dead processes left beside a file or folder that they were making."""

from __future__ import annotations

import contextlib
import glob
import shutil
from pathlib import Path

from features.storage import is_dead

__all__ = ["remove_leftovers_of"]


def remove_leftovers_of(target: Path) -> None:
    """Remove the temporary files and folders of dead makers of `target`, and nothing else; none need be there.

    They are named by `features.storage.temporary_name`. What cannot be removed stays.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}~*~*~*.tmp"):
        host, process = left.name.split("~")[-3:-1]
        with contextlib.suppress(OSError):
            if is_dead(left, host, process):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
