"""A real browser that opens a page from the disk and tells all that the page asks for.

Chromium is driven over a pipe by its DevTools protocol; no port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WATCHDOG = 240.0  # seconds
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """Returns the path of an installed Chromium; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A page of the browser.

    Attributes:
        requests: The addresses that the page has asked for.
        complaints: Errors and warnings on the page's console, and exceptions of its scripts.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write, self._read, self._buffer, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def open(
        self,
        path: Path | str,
        *,
        width: int,
        height: int = 900,
        dark: bool = False,
        ready: str = "document.documentElement?.dataset.charts === 'drawn'",
    ) -> None:
        """Opens a file or an address, and waits until an expression is true.

        By default the expression says that the charts of a report are drawn.
        """
        address = path if isinstance(path, str) else path.resolve().as_uri()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.value("delete document.documentElement.dataset.charts")  # of the page before
        self.ask("Page.navigate", url=address)
        limit = time.monotonic() + WATCHDOG
        while self.value(f"location.href !== 'about:blank' && {ready}") is not True:
            if time.monotonic() > limit:
                raise TimeoutError(f"it is not true: {ready}; {self.complaints}")
            time.sleep(0.1)

    def value(self, expression: str) -> Any:
        """Returns the value of an expression in JavaScript."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, *, whole: bool = True) -> bytes:
        """Returns a picture of the page as a PNG."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its answer; keeps what the page tells meanwhile."""
        self._number += 1
        question: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            question["sessionId"] = self._session
        os.write(self._write, json.dumps(question).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                if "error" in message:
                    raise ValueError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["entry"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], WATCHDOG)[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise EOFError("the browser has ended")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def browser_page(program: str, profile: Path) -> Iterator[Page]:
    """Starts a browser with an empty profile in a new folder, and ends it after the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    ends = (to_browser[0], from_browser[1])
    move = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(
        ["bash", "-c", move, "browser", program, *flags, "about:blank"],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for end in ends:
            os.close(end)
        try:
            yield Page(to_browser[1], from_browser[0])
        finally:
            process.kill()
            os.close(to_browser[1])
            os.close(from_browser[0])
