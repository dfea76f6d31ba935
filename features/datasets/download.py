"""One file from the network: whole, with the right checksum, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, final
from urllib.parse import urlsplit

from features.errors import BadDownload
from features.storage import remove_leftovers_of, temporary_name

if TYPE_CHECKING:
    from requests import RequestException, Response
    from rich.progress import Progress, TaskID

WAITS = (0.5, 2.0)  # seconds before each further attempt at a broken transfer
TIMEOUTS = (10.0, 60.0)  # seconds to a connection, seconds without a byte
CHUNK = 1 << 18  # bytes
DIGITS = {"md5": 32, "sha256": 64}


def fetch(url: str, checksum: str, target: Path, *, progress: bool = False) -> Path:
    """Return `target` once it holds the file at `url` (http or https) with `checksum` (`md5:...` or `sha256:...`).

    An existing file with that checksum is not downloaded again, one with another is not touched. The file appears
    whole or not at all. A broken transfer is tried twice more. `progress` draws a bar on stderr. BadDownload if the
    file does not arrive, is not the expected one or cannot be written.
    """
    algorithm, _, digest = checksum.partition(":")
    if len(digest) != DIGITS.get(algorithm):
        raise BadDownload(f"the checksum of {url} should read md5:<32 digits> or sha256:<64 digits>, not {checksum!r}")
    try:
        if target.exists():
            _check(target, checksum, f"{target} is not the file at {url}", f"delete {target} and run again")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(target)
        _download(url, checksum, target, progress)
    except OSError as error:
        why = error.strerror or error
        raise BadDownload(f"cannot write {target}: {why}; its folder must be writable, with room") from None
    return target


def _check(path: Path, checksum: str, complaint: str, remedy: str) -> None:
    """Raise BadDownload with `complaint` and `remedy` unless the file has the checksum."""
    algorithm = checksum.partition(":")[0]
    with path.open("rb") as file:
        found = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    if found != checksum.lower():
        raise BadDownload(f"{complaint}: expected {checksum}, got {found}; {remedy}")


def _download(url: str, checksum: str, target: Path, progress: bool) -> None:
    """Download under a temporary name beside `target`, verify, rename."""
    part = temporary_name(target)
    by_hand = f"download it by hand to {target} ({checksum})"
    try:
        _transfer(url, part, by_hand, target.name if progress else None)
        _check(part, checksum, f"{url} is not the expected file", by_hand)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _transfer(url: str, part: Path, by_hand: str, label: str | None) -> None:
    """Write the file at `url` to `part`, from the start in each attempt; with a `label`, draw a bar."""
    from requests import RequestException

    for wait in (*WAITS, None):
        try:
            with _bar(label) as bar:
                _attempt(url, part, bar)
            return
        except RequestException as error:
            if wait is None or not _may_pass(error):
                raise BadDownload(f"cannot download {url}: {_reason(url, error, part)}; {by_hand}") from None
            time.sleep(wait)


def _attempt(url: str, part: Path, bar: _Bar | bool) -> None:
    """Let pooch write the file at `url` to `part` once; RequestException or OSError where it breaks off."""
    import pooch

    with contextlib.ExitStack() as opened:

        def close_later(response: Response, **_: object) -> None:
            opened.callback(response.close)

        get = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK,
            timeout=TIMEOUTS,
            headers={"Accept-Encoding": "identity"},  # the checksum is of the file and not of a server's packing
            hooks={"response": close_later},  # which pooch leaves open when the disk is full
        )
        get(url, str(part), None)


def _may_pass(error: RequestException) -> bool:
    """Tell whether another attempt may do better: the network broke or the server is in trouble."""
    from requests import ConnectionError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if error.response is not None:
        return error.response.status_code >= 500
    return isinstance(error, ConnectionError | Timeout | ChunkedEncodingError)


def _reason(url: str, error: RequestException, part: Path) -> str:
    """Return in a few words why the transfer failed."""
    from requests import ConnectionError, Timeout
    from requests.exceptions import ChunkedEncodingError

    arrived, host = part.stat().st_size, urlsplit(url).netloc
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if arrived or isinstance(error, ChunkedEncodingError):
        return f"the transfer broke off after {arrived:,} bytes"
    if isinstance(error, ConnectionError | Timeout):
        return f"no answer from {host}"
    return " ".join(str(error).split())


@contextlib.contextmanager
def _bar(label: str | None) -> Iterator[_Bar | bool]:
    """Show a bar on stderr, or none without a `label`."""
    if label is None:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, progress.add_task(label, total=None))


@final
class _Bar:
    """The bar in the words that pooch calls: it sets `total`, then updates in bytes, resets, updates and closes."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task, self.total = progress, task, 0

    def update(self, count: int) -> None:
        """Count `count` more bytes."""
        self.progress.update(self.task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """Start counting anew, if pooch can count up to the total afterwards."""
        if self.total:
            self.progress.update(self.task, completed=0)

    def close(self) -> None:
        """Leave the bar as it stands; it ends with its display."""
