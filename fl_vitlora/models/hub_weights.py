"""Finds out within seconds if the Hugging Face hub can be reached, and stores the answer.

Without this test, every search for a file would wait for all retries of the hub's own client.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 4.0  # seconds for resolving the name and connecting
# Files that timm searches for in a repository of the hub.
FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@functools.cache
def reachable(patience: float = PATIENCE) -> bool:
    """Returns True if the Hugging Face hub, or the proxy in front of it, accepts a connection.

    Args:
        patience: The time in seconds to wait for a connection.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    probe = threading.Thread(  # resolving a name has no time limit
        target=lambda: answers.append(_connects(*_first_address(constants.ENDPOINT), patience)),
        daemon=True,
    )
    probe.start()
    probe.join(patience)
    return bool(answers and answers[0])


@contextlib.contextmanager
def without_retries() -> Iterator[None]:
    """Makes the hub's client use only its cache in a `with` block, if the hub is out of reach."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_cached(repository: str, *files: str) -> bool:
    """Returns True if at least one of the given files of a repository is in the local cache.

    Args:
        repository: The name of the repository, ``owner/name`` or ``owner/name@revision``.
        files: The names of the files. If `files` is empty, the function looks for the files that
            timm loads.
    """
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    return any(
        isinstance(try_to_load_from_cache(name, file, revision=revision or None), str)
        for file in files or FILES
    )


def _first_address(endpoint: str) -> tuple[str, int]:
    """Returns the host and port to which a request goes first: those of the proxy or the hub."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)


def _connects(host: str, port: int, patience: float) -> bool:
    with contextlib.suppress(OSError, UnicodeError):
        socket.create_connection((host, port), timeout=patience).close()
        return True
    return False
