"""Shows the live page to browsers on this machine, and to nobody else.

The server listens at 127.0.0.1 only. It answers GET requests for two addresses, the page and its
content, and computes both answers: no part of a request becomes a path of a file. Both addresses
contain a random word, so that other users of the machine, and pages of other sites in the same
browser, cannot guess them. A request must name this machine as its host, which stops a site whose
name has been pointed at 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from fl_vitlora.errors import UserError
from fl_vitlora.reporting.live.run_state import Files
from fl_vitlora.reporting.live.view import content_of, has_content, missing, to_bytes
from fl_vitlora.reporting.report.page import render

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
WORD_BYTES = 16
PATIENCE = 30.0  # seconds that a browser may take for its request
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
SAME_SITE = ("same-origin", "none", "")  # who asks: this page, or a person who typed the address


class LiveServer(ThreadingHTTPServer):
    """A server that shows one folder.

    Args:
        folder: The folder of a run or of a comparison.
        port: The port at 127.0.0.1; 0 for a free port.
        expected: True if the folder may still be missing, because its run has just been started.

    Raises:
        UserError: If the folder has neither a run nor a comparison, or the port is in use.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0, *, expected: bool = False) -> None:
        self._folder, self._expected = folder, expected
        self._files, self._lock = Files(), threading.Lock()
        if not expected and not has_content(folder):
            raise UserError(missing(folder))
        context = {"title": folder.resolve().name, "summary": ""}
        scripts = ("look.js", "live.js")
        text = render("live.html.j2", context, scripts=scripts, connects=True)
        self.page = text.encode("utf-8")
        self.word = secrets.token_urlsafe(WORD_BYTES)
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or error
            raise UserError(f"port {port} of {ADDRESS} cannot be used: {told}") from None

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.word}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing about a browser that has closed its tab: the terminal belongs to the run."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def content(self) -> bytes:
        """Returns what the page shows at this moment, as JSON."""
        with self._lock:  # several open pages read the folder one after the other
            return to_bytes(content_of(self._folder, self._files, expected=self._expected))


class Handler(BaseHTTPRequestHandler):
    """Answers one request, and then closes the connection, so that nothing outlives the server."""

    server: LiveServer
    timeout: ClassVar[float] = PATIENCE
    server_version, sys_version = "fl_vitlora", ""

    def do_GET(self) -> None:
        """Answers a request for the page or for its content."""
        if not self._is_from_here():
            self._answer(HTTPStatus.FORBIDDEN, b"this page is only for browsers on its machine\n")
        elif self._asks_for(""):
            self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif self._asks_for("state"):
            self._answer_content(self.server.content())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is no such page\n")

    def __getattr__(self, name: str) -> object:
        """Answers every request other than GET with the status 405."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET is answered\n", allow="GET")

    def _is_from_here(self) -> bool:
        """Returns True if a request names this machine, and no page of another site has sent it."""
        hosts = self.headers.get_all("Host") or []
        named = hosts[0].rsplit(":", 1)[0].lower() if len(hosts) == 1 else ""
        return named in HOSTS and self.headers.get("Sec-Fetch-Site", "") in SAME_SITE

    def _asks_for(self, name: str) -> bool:
        """Returns True if the address is exactly that of the page (an empty name) or of a part."""
        wanted = f"/{self.server.word}/{name}"
        return hmac.compare_digest(self.path.encode(errors="replace"), wanted.encode())

    def _answer_content(self, content: bytes) -> None:
        mark = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == mark:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", etag=mark)
            return
        self._answer(HTTPStatus.OK, content, "application/json", etag=mark)

    def _answer(
        self, status: HTTPStatus, body: bytes, kind: str = "text/plain", **more: str
    ) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**HEADERS, **own, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: the terminal belongs to the run."""


@contextmanager
def shown(folder: Path, port: int = 0) -> Iterator[str]:
    """Shows the page of a run that is being started, inside a `with` block.

    Args:
        folder: The folder, which may still be missing.
        port: The port at 127.0.0.1; 0 for a free port.

    Yields:
        The address of the page.
    """
    with LiveServer(folder, port, expected=True) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()
