"""A headless Chromium driven through its DevTools protocol over two pipes (standard library only)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["CHROMIUM", "Browser", "complaints", "requested"]

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",  # refused to root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds for one answer


class Browser:
    """One page. Events that the page causes (requests, console messages) gather in `events`."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        orders, self._send = os.pipe()
        self._receive, answers = os.pipe()
        # Chromium reads orders from descriptor 3 and answers on 4; the shell puts them there.
        shell = f'exec "$0" "$@" 3<&{orders} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(orders, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(orders)
        os.close(answers)
        os.set_blocking(self._receive, False)
        self.events: list[dict[str, Any]] = []
        self._rest, self._count, self._session = b"", 0, None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._send)
        os.close(self._receive)

    def call(self, method: str, **parameters: Any) -> Any:
        """Give an order, wait for its answer."""
        self._count += 1
        order = {"id": self._count, "method": method, "params": parameters}
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._send, json.dumps(order | session).encode() + b"\0")
        for message in self._messages():
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)
        raise AssertionError(f"no answer to {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while b"\0" in self._rest:
                message, self._rest = self._rest.split(b"\0", 1)
                yield json.loads(message)
            try:
                self._rest += os.read(self._receive, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)

    def open(self, page: Path) -> None:
        """Forget what was, load a file and wait until its figures are drawn."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.until("document.readyState === 'complete' && document.querySelectorAll('.plot .main-svg').length > 0")
        self.settle()

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for two frames, in which everything that was asked for is drawn."""
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, as a person would."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, " ": 32, "Tab": 9}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **text)

    @contextmanager
    def looking(self, *, width: int, height: int = 900, dark: bool = False) -> Iterator[None]:
        """Give the page a size and a preference for light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()
        yield
        self.call("Emulation.clearDeviceMetricsOverride")

    def screenshot(self, file: Path) -> None:
        """Write an image of the whole page."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


def complaints(browser: Browser) -> list[dict[str, Any]]:
    """Return console errors and warnings, uncaught exceptions and dialogs since the last call; forget them."""
    browser.settle()
    kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    found = [event for event in browser.events if event.get("method") in kinds]
    browser.events = [event for event in browser.events if event not in found]
    return found


def requested(browser: Browser) -> list[str]:
    """Return the addresses that were asked for since the last call, all but data: ones; forget them."""
    asked = [event for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    browser.events = [event for event in browser.events if event not in asked]
    urls = [event["params"]["request"]["url"] for event in asked]
    return [url for url in urls if not url.startswith("data:")]
