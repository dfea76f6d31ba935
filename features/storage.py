"""Where results lie, files that are absent or whole, and CSV that a spreadsheet opens without harm."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
import shutil
import socket
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

STALE_AFTER = 600.0  # seconds without a sign of life after which a writer on another host counts as dead


def data_root() -> Path:
    """Return the folder of the named data sets, `$FIRN_DATA` (default `data`)."""
    return Path(os.environ.get("FIRN_DATA") or "data")


def artifacts_root() -> Path:
    """Return the folder of everything that Firn writes, `$FIRN_ARTIFACTS` (default `artifacts`)."""
    return Path(os.environ.get("FIRN_ARTIFACTS") or "artifacts")


def slug(text: str) -> str:
    """Return `text` as a folder name: letters (of every script) and digits in lower case, and `._-`."""
    plain = unicodedata.normalize("NFC", text.lower())
    kept = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else "-" for c in plain)
    return kept.strip("-.") or "unnamed"


def temporary_name(path: Path) -> Path:
    """Return a hidden temporary name beside `path` that holds the writer's host and process."""
    return path.with_name(f".{path.name}~{socket.gethostname()}~{os.getpid()}~{time.monotonic_ns():x}.tmp")


def write_whole(path: Path, pieces: Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write `pieces` to `path` atomically: afterwards it is either as before or whole and on the disk.

    With `replace=False` an existing file of that name is left alone (the name tells the content).
    OSError (disk full, read-only) passes through after the temporary file is gone.
    """
    with whole(path, replace=replace) as descriptor:
        for piece in pieces:
            _write_all(descriptor, memoryview(piece).cast("B"))


@contextlib.contextmanager
def whole(path: Path, *, replace: bool = True) -> Iterator[int]:
    """Open a temporary file that atomically becomes `path` when the block ends well; yield its descriptor."""
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace or not path.exists():
            os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names no file
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    sync_folder(path.parent)


def _write_all(descriptor: int, piece: memoryview) -> None:
    """Write every byte; `os.write` may take fewer than it was given."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def make_folder(folder: Path) -> None:
    """Make a folder and those above it so that they survive a power cut: each is synced into the one above."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        missing.mkdir(exist_ok=True)
        sync_folder(missing.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder so that a rename in it survives a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of dead writers in `folder`; return them. For writers only, never for readers."""
    removed = []
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(path)
    return removed


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders of dead writers in `folder`, sorted."""
    found = []
    for path in sorted(folder.glob(".*~*~*~*.tmp")):
        _, host, process, *_ = [*path.name.split("~"), "", ""]
        with contextlib.suppress(OSError):
            if is_dead(path, host, process):
                found.append(path)
    return found


def is_dead(path: Path, host: str, process: str) -> bool:
    """Tell whether the process that made a file is gone.

    On this host the process table knows, also that a number has gone to a later process (in a container that is started
    again it is the same each time); of another host's file, one that has not been touched for STALE_AFTER seconds of
    the file system's own clock counts as abandoned.
    """
    if host != socket.gethostname() or not process.isdigit():
        return age(path) > STALE_AFTER
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    older = age(path) - _lived(process)
    return older > 1 or (older > -1 and age(path) > STALE_AFTER)  # some file systems tell whole seconds only


def _lived(process: str) -> float:
    """Return the seconds since a process of this host began, by proc(5); STALE_AFTER where there is no such table."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return STALE_AFTER


def age(path: Path) -> float:
    """Return the seconds since a file was touched, by the file system's own clock. FileNotFoundError passes through."""
    return _clock_of(path.parent) - path.stat().st_mtime


def _clock_of(folder: Path) -> float:
    """Return the file system's own time, by touching a file; hosts' clocks differ."""
    probe = temporary_name(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def remove_leftovers_of(target: Path) -> None:
    """Remove the temporary files and folders of dead makers of `target`, and nothing else; none need be there.

    They are named by `features.storage.temporary_name`. What cannot be removed stays.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}~*~*~*.tmp"):
        host, process = left.name.split("~")[-3:-1]
        with contextlib.suppress(OSError):
            if is_dead(left, host, process):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what makes a spreadsheet take a cell for a formula


def csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as CSV in UTF-8, a line each.

    A cell that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, "CSV Injection"); numbers
    are left alone and have all their digits; None is empty.
    """
    return "".join(_line([_cell(cell) for cell in row]) for row in rows).encode()


def _line(cells: list[str]) -> str:
    """Return one line. A writer quotes what its own line end is made of: else a lone CR would begin another line."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
