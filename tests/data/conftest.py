"""Fixtures for tests of data: thirty digits, and a network that refuses every connection."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fl_vitlora.config import DataConfig
from fl_vitlora.data import sources
from fl_vitlora.data.sources import Images


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return sources.load(DataConfig(limit=30))


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
