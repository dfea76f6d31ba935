"""Downloads of published files with a known checksum, by pooch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from features.errors import BadDownload
from features.progress import shown
from features.storage import remove_leftovers_of, temporary_name

RETRIES = 2  # further attempts at a broken transfer; pooch waits 1 second, then 2
TIMEOUTS = (10.0, 60.0)  # seconds to a connection, seconds without a byte
CHUNK, MB = 1 << 18, 1 << 20  # bytes


def fetch(url: str, checksum: str, target: Path) -> Path:
    """Download the file at `url` to `target` unless it is there, and verify its checksum (`md5:...` or `sha256:...`).

    The file appears whole or not at all; one that is there with another checksum is left alone and refused. Progress
    is shown on stderr. Raises BadDownload if it does not arrive, is not the expected one or cannot be written.
    """
    from requests import RequestException

    by_hand = f"download it by hand to {target} ({checksum})"
    try:
        if target.exists():
            _check(target, checksum)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers_of(target)
            _download(url, checksum, target)
    except (RequestException, ValueError) as error:
        raise BadDownload(f"cannot download {url}: {' '.join(str(error).split())}; {by_hand}") from None
    except OSError as error:
        why = error.strerror or error
        raise BadDownload(f"cannot write {target}: {why}; its folder must be writable, with room") from None
    return target


def _check(target: Path, checksum: str) -> None:
    """Raise BadDownload unless the file that is there already has the checksum."""
    import pooch

    algorithm, _, expected = checksum.lower().partition(":")
    if (found := pooch.file_hash(target, alg=algorithm)) != expected:
        came = f"expected {checksum}, got {algorithm}:{found}"
        raise BadDownload(f"{target} is not the published file: {came}; move it away and run again")


def _download(url: str, checksum: str, target: Path) -> None:
    """Let pooch download into a hidden folder beside `target` and verify; rename."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder = temporary_name(target)
    books = pooch.Pooch(folder, "", {target.name: checksum}, {target.name: url}, retry_if_failed=RETRIES)
    try:
        with shown(f"download {target.name}", "MB") as show:
            part = Path(books.fetch(target.name, downloader=_Downloader(show)))
        part.chmod(folder.stat().st_mode & 0o666)  # as the umask allows; pooch's own files are for the owner alone
        part.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@final
@dataclass
class _Downloader:
    """One attempt at a transfer, and its progress in the methods that pooch calls on a bar."""

    show: Callable[[int, int], None]
    total: int = 0  # bytes, set by pooch
    done: int = 0

    def __call__(self, url: str, part: str, books: object) -> None:
        import pooch

        plain = {"Accept-Encoding": "identity"}  # the checksum is of the file and not of a server's packing
        self.done = 0
        pooch.HTTPDownloader(progressbar=self, chunk_size=CHUNK, timeout=TIMEOUTS, headers=plain)(url, part, books)

    def update(self, count: int) -> None:
        """Count `count` more bytes."""
        self.done += count
        self.show(self.done // MB, max(self.done, self.total) // MB)

    def reset(self) -> None:
        """Start counting anew; pooch then counts the whole file at once."""
        self.done = 0

    def close(self) -> None:
        """Leave the bar to `shown`."""
