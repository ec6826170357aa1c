"""A stand-in of the Hugging Face hub on loopback, which really stores what a client uploads.

It answers the requests by which `huggingface_hub` creates a model repository, uploads a folder and
lists it: texts within the commit, large files by the protocol of Git LFS. The newer protocol Xet is
not part of it, so clients must have HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

TOKEN = "hf_" + "x" * 34
USER = "somebody"
LARGE = (".safetensors", ".onnx", ".data")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
NAME = r"(?P<name>[^/]+/[^/]+)"


@dataclass
class Repository:
    """A repository: its files, and whether it is private."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": ATTRIBUTES})


class RefusedError(Exception):
    """An answer other than 200, with the hub's code of the error and further entries."""

    def __init__(self, status: int, error: str, code: str = "", **entries: str) -> None:
        super().__init__(error)
        self.status, self.error, self.code, self.entries = status, error, code, entries


class Hub:
    """The stand-in.

    Attributes:
        repositories: The repositories by name.
        damage: What happens to the content of a file before it is stored.
        fails: The kind of requests that get the answer 500.
        requests: The method and the path of each request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.damage: Callable[[str, bytes], bytes] = lambda name, content: content
        self.fails = ""
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                hub.answer(self, self.rfile.read(length))

            do_GET = do_POST = do_PUT = _answer  # noqa: N815 - names of http.server

            def log_message(self, *told: Any) -> None:
                """Prints nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answers a request with JSON."""
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        status, content, headers = 200, None, {}
        try:
            content = self._content(request, path, body)
        except RefusedError as refused:
            status, content = refused.status, {"error": refused.error, **refused.entries}
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.error}
        text = json.dumps(content).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _content(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> Any:
        if path.startswith("/lfs/"):  # the address itself is the permission
            self.large[path.removeprefix("/lfs/")] = body
            return {}
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "Invalid credentials in Authorization header")
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{request.command} {path}"):
                if method == self.fails:
                    raise RefusedError(500, "Internal Error - We're working hard to fix this")
                return getattr(self, f"_{method}")(body, **found.groupdict())
        raise RefusedError(404, f"the stand-in has no {request.command} {path}", "EntryNotFound")

    def _who(self, body: bytes) -> Any:
        return {"name": USER, "type": "user", "orgs": []}

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        owner = asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if owner != USER:
            raise RefusedError(403, f"You don't have the rights to create a model under {owner}")
        if name in self.repositories:
            address = f"{self.address}/{name}"
            raise RefusedError(409, "You already created this model repo", url=address)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.repositories[name] = Repository(private)
        return {"url": f"{self.address}/{name}", "name": name}

    def _yaml(self, body: bytes) -> Any:
        front = json.loads(body)["content"].split("---")[1]
        if not isinstance(yaml.safe_load(front), dict):
            raise RefusedError(400, "Invalid metadata")
        return {"errors": [], "warnings": []}

    def _repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return self.repositories[name]

    def _info(self, body: bytes, name: str) -> Any:
        found = self._repository(name)
        siblings = [{"rfilename": file} for file in found.files]
        told = {"id": name, "private": found.private, "siblings": siblings}
        return {**told, "sha": "c" * 40}

    def _preupload(self, body: bytes, name: str) -> Any:
        self._repository(name)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return {"files": files}

    def _batch(self, body: bytes, name: str) -> Any:
        self._repository(name)
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body: bytes, name: str) -> Any:
        found = self._repository(name)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.large[value["oid"]]
                if hashlib.sha256(content).hexdigest() != value["oid"]:
                    raise RefusedError(400, "the content is not that of the oid")
            else:
                continue
            found.files[value["path"]] = self.damage(value["path"], content)
        return {"commitUrl": f"{self.address}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40}

    def _tree(self, body: bytes, name: str) -> Any:
        return [told(file, content) for file, content in self._repository(name).files.items()]


ROUTES = {
    "GET /api/whoami-v2": "who",
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "yaml",
    f"GET /api/models/{NAME}": "info",
    f"POST /api/models/{NAME}/preupload/main": "preupload",
    rf"POST /{NAME}\.git/info/lfs/objects/batch": "batch",
    f"POST /api/models/{NAME}/commit/main": "commit",
    f"GET /api/models/{NAME}/tree/main": "tree",
}


def told(name: str, content: bytes) -> dict[str, Any]:
    """Returns what the hub says about a file: its size and its checksums."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return found
