"""The live page of a folder, and requests to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fl_vitlora.reporting.live.server import ADDRESS, LiveServer
from tests.waiting import WATCHDOG


@contextmanager
def served(folder: Path, *, expected: bool = False) -> Iterator[LiveServer]:
    with LiveServer(folder, expected=expected) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    url: str, path: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Sends one request as it is written, without any correction of the path."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(ADDRESS, parts.port, timeout=WATCHDOG)
    try:
        connection.putrequest(method, path or parts.path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def content(url: str) -> dict[str, Any]:
    status, body, _ = ask(f"{url}state")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


def figures(found: dict[str, Any]) -> dict[str, str]:
    return dict(found["figures"])
