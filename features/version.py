"""Which Firn this is: its version and, of a checkout or of a wheel that was built in one, the commit."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

DISTRIBUTION = "firn-transfer-learning"
COMMIT = Path(__file__).with_name("COMMIT")  # in a wheel: of which commit it was built


@cache
def firn_version() -> str:
    """Return Firn's version and the commit, which ends in .dirty where files differ from it; the version alone without.

    The form is that of a local version (PEP 440): 0.1.0+0123456789ab.
    """
    root = Path(__file__).parents[1]
    commit = COMMIT.read_text().strip() if COMMIT.exists() else commit_of(root)
    return f"{_number(root)}+{commit}" if commit else _number(root)


def commit_of(root: Path) -> str:
    """Return the commit that is checked out in a folder; empty where that is no checkout, or git is missing."""
    if not (root / ".git").exists():  # git would take that of a folder above
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return ""


def _number(root: Path) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(DISTRIBUTION)
    found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    return found[1] if found else "0"


def install_command(extra: str) -> str:
    """Return what to type for the libraries of an extra, wherever Firn itself was installed from."""
    try:
        needed = [
            line.partition(";")[0].strip() for line in requires(DISTRIBUTION) or () if f'extra == "{extra}"' in line
        ]
    except PackageNotFoundError:
        needed = ["-e", f".[{extra}]"]
    return " ".join(["pip install", *map(shlex.quote, needed)])
