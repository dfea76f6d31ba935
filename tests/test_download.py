from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import file_size_limit

from features.datasets.download import fetch
from features.errors import BadDownload

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answer the requests with the server's list of answers in turn, the last one again and again."""

    server: Server

    def do_GET(self) -> None:
        answers = self.server.answers
        self.server.hits += 1
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    """A real server on this machine; `url` of the one file, `hits` so far."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [whole]
        self.hits = 0
        self.url = f"http://127.0.0.1:{self.server_port}/set.npz"


def send(handler: Handler, sent: int = len(BODY), promised: int | None = len(BODY)) -> None:
    handler.send_response(200)
    if promised is not None:
        handler.send_header("Content-Length", str(promised))
    handler.end_headers()
    handler.wfile.write(BODY[:sent])


whole = partial(send)
broken = partial(send, sent=300_000)
unsized = partial(send, promised=None)


def refuse(handler: Handler, status: int) -> None:
    handler.send_error(status)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def redirect(handler: Handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere.npz")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("checksum", [SHA256, MD5, SHA256.replace(SHA256[7:], SHA256[7:].upper())])
def test_a_file_arrives_whole_and_silently(
    server: Server, tmp_path: Path, checksum: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "data" / "deep" / "set.npz"
    assert fetch(server.url, checksum, target) == target
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["set.npz"]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("pooch")]


def test_the_right_file_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(BODY)
    fetch(server.url, MD5, tmp_path / "set.npz")
    assert server.hits == 0


def test_a_wrong_file_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.npz"
    target.write_bytes(b"mine")
    found = hashlib.md5(b"mine").hexdigest()
    with pytest.raises(
        BadDownload, match=rf"set.npz is not the published file: expected {MD5}, got md5:{found}; move .*"
    ):
        fetch(server.url, MD5, target)
    assert server.hits == 0
    assert target.read_bytes() == b"mine"


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    wrong = "sha256:" + "0" * 64
    with pytest.raises(BadDownload) as caught:
        fetch(server.url, wrong, tmp_path / "set.npz")
    message = str(caught.value)
    assert server.url in message and f"expected {wrong} but got {SHA256[7:]}" in message and "\n" not in message
    assert f"download it by hand to {tmp_path / 'set.npz'}" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("passing", [broken, hang_up, partial(send, sent=0), partial(refuse, status=503)])
def test_a_transfer_that_breaks_twice_is_tried_again(server: Server, tmp_path: Path, passing: Answer) -> None:
    server.answers = [passing, passing, whole]
    assert fetch(server.url, SHA256, tmp_path / "set.npz").read_bytes() == BODY
    assert server.hits == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (broken, "Connection broken: IncompleteRead"),
        (hang_up, "Connection aborted"),
        (partial(refuse, status=500), "500 Server Error"),
        (partial(refuse, status=404), "404 Client Error: Not Found"),
    ],
)
def test_a_failure_is_told_and_the_next_run_succeeds(
    server: Server, tmp_path: Path, answer: Answer, reason: str
) -> None:
    server.answers = [answer]
    with pytest.raises(
        BadDownload, match=rf"^cannot download {server.url}: .*{reason}.*; download it by hand to [^\n]*$"
    ):
        fetch(server.url, SHA256, tmp_path / "set.npz")
    assert server.hits == 3
    assert not list(tmp_path.iterdir())
    server.answers = [whole]
    assert fetch(server.url, SHA256, tmp_path / "set.npz").read_bytes() == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/set.npz", ".*Connection refused"),
        ("http://no-such-host.invalid/set.npz", ".*no-such-host.invalid"),
        ("gopher://127.0.0.1/set.npz", "No connection adapters"),
        ("set.npz", "Invalid URL"),
    ],
)
@pytest.mark.usefixtures("server")
def test_an_unreachable_place_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(BadDownload, match=rf"^cannot download {url}: {reason}[^\n]*$"):
        fetch(url, SHA256, tmp_path / "set.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [redirect, unsized])
def test_redirected_and_unsized_files_arrive(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.answers = [answer, whole]
    assert fetch(server.url, SHA256, tmp_path / "set.npz").read_bytes() == BODY


def test_progress_is_drawn_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    server.answers = [broken, whole]
    fetch(server.url, SHA256, tmp_path / "set.npz")
    out, err = capfd.readouterr()
    assert out == ""
    assert "download set.npz" in err and "1/1" in err


def test_the_file_may_be_read_by_whom_the_umask_allows(server: Server, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert fetch(server.url, SHA256, tmp_path / "set.npz").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with (
        file_size_limit(300_000),
        pytest.raises(BadDownload, match=r"^cannot write [^\n]*set.npz: File too large; its folder must be writable"),
    ):
        fetch(server.url, SHA256, tmp_path / "set.npz")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_or_no_file_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "set.npz", tmp_path):
        with pytest.raises(BadDownload, match=rf"^cannot write {target}: [^\n]*$"):
            fetch(server.url, SHA256, target)
    assert server.hits == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadDownload, match="Permission denied"):
        fetch(server.url, SHA256, tmp_path / "set.npz")
    tmp_path.chmod(0o700)


def test_two_at_once_end_with_one_file(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server.url, SHA256, tmp_path / "set.npz")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "set.npz").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]
