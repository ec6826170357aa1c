"""Ray starts without the programs beside it that nobody uses, and leaves none of them behind."""

from __future__ import annotations

import inspect
import os
import subprocess

import pytest
from ray._private import node, services

from fl_vitlora.flower.simulation import ray_helpers
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.ray_helpers import IN_ITS_PLACE, few_helpers
from fl_vitlora.flower.simulation.workers import Workers
from tests.processes import PROC, descendants
from tests.waiting import WATCHDOG, wait_until

UNUSED = ("dashboard/dashboard.py", "DashboardAgent", "_private/monitor.py", "log_monitor.py")
IDLE = IN_ITS_PLACE[-1]


def commands(processes: set[int]) -> dict[int, str]:
    """Returns the command lines of processes that still run."""
    found = {}
    for process in processes:
        try:
            words = (PROC / str(process) / "cmdline").read_bytes()
        except OSError:
            continue
        found[process] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def idle_ones() -> set[int]:
    """Returns the processes that run the idle helper of this copy of the package."""
    running = {int(place.name) for place in PROC.iterdir() if place.name.isdigit()}
    return {process for process, words in commands(running).items() if IDLE in words}


@pytest.mark.skipif(not PROC.exists(), reason="reads the processes of Linux")
@pytest.mark.parametrize("logs", [False, True])
def test_only_the_programs_that_are_used_run_beside_ray(
    logs: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = Ray(Workers(device="cpu", count=1), verbose=logs)
    try:
        ray.wait()
        told = commands(set(descendants(os.getpid())))
    finally:
        ray.stop()
    capfd.readouterr()  # with logs, Ray says where it runs
    words = " ".join(told.values())
    assert [name for name in UNUSED if name in words] == (["log_monitor.py"] if logs else [])
    (idle,) = (
        process for process, command in told.items() if IDLE in command and "raylet" not in command
    )
    wait_until(lambda: idle not in idle_ones())


@pytest.mark.skipif(not PROC.exists(), reason="reads the processes of Linux")
def test_the_idle_program_ends_with_the_program_that_started_it() -> None:
    held = subprocess.Popen(IN_ITS_PLACE, stdin=subprocess.PIPE)
    assert held.poll() is None
    assert held.stdin is not None
    held.stdin.close()
    assert held.wait(WATCHDOG) == 0


def test_ray_still_starts_in_the_way_that_is_changed() -> None:
    for name in (ray_helpers.WEB_PAGE, ray_helpers.CLUSTER, ray_helpers.LOGS):
        assert f"self.{name}(" in inspect.getsource(node.Node)
    source = inspect.getsource(services.start_raylet)
    assert f"{ray_helpers.PROCESS}(" in source
    assert ray_helpers.AGENT in source


def test_another_version_of_ray_starts_as_it_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ray_helpers.WEB_PAGE, ray_helpers.CLUSTER, ray_helpers.LOGS):
        monkeypatch.delattr(node.Node, name)
    monkeypatch.delattr(services, ray_helpers.PROCESS)
    before = dict(vars(node.Node)), dict(vars(services))
    with few_helpers(logs=False):
        assert (dict(vars(node.Node)), dict(vars(services))) == before


def test_ray_is_as_it_was_after_the_start() -> None:
    before = dict(vars(node.Node)), dict(vars(services))
    with few_helpers(logs=False):
        assert (dict(vars(node.Node)), dict(vars(services))) != before
    assert (dict(vars(node.Node)), dict(vars(services))) == before
