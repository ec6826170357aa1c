"""A Ray that a simulation starts: only this machine reaches it, and its GPUs are shared out."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers
from tests.processes import PROC, descendants, named
from tests.waiting import WATCHDOG, wait_until

# Ray is told of two GPUs that are not there, and deals them out all the same.
SEATED = """
import json, os
import ray
from flwr.clientapp import ClientApp
from fl_vitlora.flower.simulation import ray_cluster
from fl_vitlora.flower.simulation.backend import KeptWorkers
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers

ray_cluster.SECONDS_TO_END = WATCHDOG / 4  # a busy machine ends processes when it comes to it

def seat(count):
    workers = Workers(device="cuda", count=count, gpus=2)
    actors = up.actors_for(workers)
    backend = KeptWorkers(actors, count, WATCHDOG, {"client_resources": workers.resources})
    backend.build(ClientApp)
    return ray.get([actor.__ray_call__.remote(place) for actor in actors], timeout=WATCHDOG)

def place(actor):
    return os.getpid(), ray.get_gpu_ids()

def lives(process):
    return os.path.exists(f"/proc/{process}")

up = Ray(Workers(device="cuda", count=3, gpus=2), verbose=False)
up.wait()
first, again = seat(3), seat(3)
assert all(lives(process) for process, _ in first)
up.end_actors()
left = [process for process, _ in first if lives(process)]
third, fewer = seat(3), seat(2)
print(json.dumps([first, again, left, third, fewer]))
up.stop()
"""

LISTENS = "0A"  # as the kernel's tables of sockets say it
AGENT = "ray::RuntimeEnvAgent"  # the last process of Ray that comes to listen


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
        wait_until(lambda: bool(listening(set(named(os.getpid(), AGENT)))))
        own = {os.getpid(), *descendants(os.getpid())}
        found = listening(own)
    finally:
        ray.stop()
    assert len(found) > 3  # of the control store, the node's manager, this program
    assert all(place.is_loopback for place in found), found


@pytest.mark.parametrize(
    ("count", "gpus", "share"),
    [(4, 1, 1 / 4), (2, 2, 1), (3, 2, 1 / 2), (5, 2, 1 / 3), (2, 3, 1), (2, 0, 0)],
)
def test_a_whole_number_of_shares_makes_up_a_gpu(count: int, gpus: int, share: float) -> None:
    workers = Workers(device="cuda" if gpus else "cpu", count=count, gpus=gpus)
    assert workers.resources == {"num_cpus": 1, "num_gpus": share}


@pytest.mark.slow
def test_workers_spread_over_gpus_and_are_kept_only_for_as_many(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SEATED.replace("WATCHDOG", str(WATCHDOG))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * WATCHDOG,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    first, again, left, third, fewer = json.loads(ended.stdout)
    assert sorted(gpu for _, (gpu,) in first) == [0, 0, 1]
    assert again == first
    assert not left
    assert not {process for process, _ in first} & {process for process, _ in third}
    assert sorted(gpu for _, (gpu,) in fewer) == [0, 1]
    assert not {process for process, _ in third} & {process for process, _ in fewer}
