"""Ray as a simulation starts it: nobody but this machine can reach it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_vitlora.flower.simulation import Ray, Workers

PROC = Path("/proc")
LISTENS = "0A"  # as the kernel's tables of sockets say it


def descendants(process: int) -> Iterator[int]:
    """Names all processes below one."""
    parents = {}
    for place in PROC.glob("[0-9]*"):
        try:
            parents[int(place.name)] = int(
                (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    waiting = [process]
    while waiting:
        parent = waiting.pop()
        waiting += (children := [child for child, above in parents.items() if above == parent])
        yield from children


def sockets(process: int) -> set[str]:
    """Names the sockets of a process by their inodes."""
    found = set()
    for link in (PROC / str(process) / "fd").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was closed
            named = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            found |= {named[1]} if named else set()
    return found


def address(hexadecimal: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Reads an address as the kernel writes it, in words of the machine's byte order."""
    words = [bytes.fromhex(hexadecimal[i : i + 8])[::-1] for i in range(0, len(hexadecimal), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def listening(processes: set[int]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Finds the addresses on which processes listen."""
    inodes = {inode for process in processes for inode in sockets(process)}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if (PROC / "net" / table).exists()
        for line in (PROC / "net" / table).read_text().splitlines()[1:]
    ]
    return [
        address(row[1].partition(":")[0]) for row in rows if row[3] == LISTENS and row[9] in inodes
    ]


@pytest.mark.skipif(not (PROC / "net" / "tcp").exists(), reason="reads the tables of Linux")
def test_ray_is_reached_from_this_machine_alone() -> None:
    ray = Ray(Workers(device="cpu", count=1), verbose=False)
    try:
        ray.wait()
        own = {os.getpid(), *descendants(os.getpid())}
        found = listening(own)
    finally:
        ray.stop()
    assert len(found) > 3  # of the control store, the node's manager, this program
    assert all(place.is_loopback for place in found), found
