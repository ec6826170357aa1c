"""Local data never makes the program call out: here, nobody can."""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses every connection and every question for an address, and lists them."""
    made: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        made.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return made
