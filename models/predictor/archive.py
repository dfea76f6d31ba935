"""The files of a bundle, a folder or a .zip, read as a stranger's: no path leads out, no size runs away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from features.errors import BadBundle, command
from features.storage import make_folder, sync_folder, temporary_name, whole

BUNDLE = "bundle.json"
MOST_JSON = 64 << 20  # bytes of a JSON or text file
MOST_FILES = 10_000
MOST_INFLATED = 200  # times the bytes in the archive; JSON shrinks to a twentieth, a bomb to a thousandth
_ROOM = 1 << 20  # bytes that any file may inflate to
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_CHUNK = 1 << 20
_AGAIN = "get it anew from where it was made, or make it anew (make bundle)"


def is_bundle(path: Path) -> bool:
    """Tell whether a path is meant as a bundle: a .zip, or a folder that holds a bundle.json."""
    return path.suffix.lower() == ".zip" or (path / BUNDLE).is_file()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Give a bundle as a folder: itself, or a temporary one with what the .zip holds. Raises BadBundle."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise BadBundle(
            f"no bundle at {path}; expected a folder with a {BUNDLE}, or a .zip of one, which "
            f"{command('bundle', OUT=path)} makes of a run"
        )
    with tempfile.TemporaryDirectory(prefix="firn-bundle-") as folder:
        try:
            _unpack(path, Path(folder))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
            raise BadBundle(f"{path} is no .zip that can be read ({error}); {_AGAIN}") from None
        except Exception as error:  # decompressors raise errors of their own
            raise BadBundle(f"{path} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from None
        yield Path(folder)


def _unpack(path: Path, folder: Path) -> None:
    """Unpack plain files with plain names, whose sizes are what the archive says."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) > MOST_FILES:
            raise BadBundle(f"expected at most {MOST_FILES} files in {path}, got {len(members)}")
        names = [info.filename for info in members]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise BadBundle(f"{path} holds {sorted(doubled)[0]!r} twice; {_AGAIN}")
        for info in members:
            _check_member(path, info)
        for info in members:
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("wb") as sink:
                _copy(source, sink, info.file_size)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse what leads out of the folder (zip slip), links, and files that inflate without end."""
    if not _plain(info.filename) or info.orig_filename != info.filename:
        raise BadBundle(f"{path} holds a file with the name {info.filename!r}, which leads out of it; {_AGAIN}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise BadBundle(f"{path} holds {info.filename!r} as a link or device; expected files; {_AGAIN}")
    if info.file_size > _ROOM + MOST_INFLATED * info.compress_size:
        size = f"{info.file_size:,} bytes out of {info.compress_size:,}"
        raise BadBundle(f"{path} would inflate {info.filename!r} to {size}; {_AGAIN}")


def _copy(source: Any, sink: Any, size: int) -> None:
    left = size
    while piece := source.read(min(_CHUNK, left + 1)):
        left -= len(piece)
        if left < 0:
            raise BadBundle(f"a file in the archive is longer than it says; {_AGAIN}")
        sink.write(piece)


def _plain(name: str) -> bool:
    """Tell whether a name is relative, stays below its folder, and means the same everywhere."""
    return _NAME.fullmatch(name) is not None and ".." not in name.split("/")


def sealed(folder: Path, name: str) -> Path:
    """Return a file of a bundle's folder. BadBundle unless it is a regular file inside, with no link on the way."""
    if not _plain(name):
        raise BadBundle(f"{folder / BUNDLE} names the file {name!r}, which leads out of the folder; {_AGAIN}")
    path, base = folder / name, Path(os.path.realpath(folder))
    if Path(os.path.realpath(path)) != base / name:
        raise BadBundle(f"{path} is a link; a bundle holds files themselves; {_AGAIN}")
    if not path.is_file():
        raise BadBundle(f"{path} is missing; {_AGAIN}")
    return path


def read_json(folder: Path, name: str) -> Any:
    """Return what a JSON file of a bundle holds. BadBundle for one that is too large or does not read."""
    path = sealed(folder, name)
    if path.stat().st_size > MOST_JSON:
        raise BadBundle(f"expected at most {MOST_JSON:,} bytes in {path}, got {path.stat().st_size:,}")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadBundle(f"{path} is no JSON ({type(error).__name__}: {str(error)[:100]}); {_AGAIN}") from None


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise BadBundle unless every listed file is there and has its sha256."""
    for name, expected in digests.items():
        path = sealed(folder, name)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise BadBundle(f"{path} has the digest {found[:12]}, expected {expected[:12]}: it is damaged; {_AGAIN}")


def write_archive(folder: Path, target: Path) -> None:
    """Move a bundle's folder to `target`, or write it as `target` where that ends in .zip; absent or whole."""
    if target.suffix.lower() != ".zip":
        _move(folder, target)
        return
    with whole(target) as descriptor, os.fdopen(os.dup(descriptor), "w+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(folder).as_posix())
        file.flush()


def _move(folder: Path, target: Path) -> None:
    """Move a folder to `target`, in the place of an older bundle. BadBundle for any other folder that is there."""
    make_folder(target.parent)
    if target.exists() and not (target / BUNDLE).is_file() and any(target.iterdir()):
        raise BadBundle(f"{target} is there and no bundle; take another OUT=, or a name that ends in .zip")
    old = temporary_name(target)
    with contextlib.suppress(FileNotFoundError):
        os.replace(target, old)
    os.replace(folder, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
