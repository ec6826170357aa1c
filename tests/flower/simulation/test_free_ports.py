"""Ports that nobody gets by chance: free, different, and below the system's own range."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fl_vitlora.flower.simulation import free_ports
from fl_vitlora.flower.simulation.free_ports import LOOPBACK, PORTS, free_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_can_be_opened_and_is_given_once():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert set(ports) <= set(PORTS)
    with socket.socket() as server:
        server.bind((LOOPBACK, ports[0]))


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    """One of three ports is taken; the other two are given, and then there is none."""
    first = free_port()
    monkeypatch.setattr(free_ports, "PORTS", range(first, first + 3))
    monkeypatch.setattr(free_ports, "_handed_out", set())
    with socket.socket() as server:
        server.bind((LOOPBACK, first))
        given = {port for _ in range(2) if (port := free_port_or_none()) is not None}
        assert given <= {first + 1, first + 2}
        assert free_port_or_none() is None


def free_port_or_none() -> int | None:
    try:
        return free_port()
    except OSError:
        return None


@pytest.mark.skipif(not RANGE.exists(), reason="reads what Linux tells")
def test_the_system_gives_no_such_port_out():
    least, _ = map(int, RANGE.read_text().split())
    if least == 32_768:  # Linux's own range, which an administrator may change
        assert max(PORTS) < least
