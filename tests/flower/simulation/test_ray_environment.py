"""Ray gets the time that it needs to start on a busy machine, and no more than that."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private import node, services

from fl_vitlora.flower.simulation import ray_environment
from fl_vitlora.flower.simulation.free_ports import PORTS
from fl_vitlora.flower.simulation.ray_environment import patient_start
from tests.waiting import WATCHDOG

ROOT = Path(__file__).resolve().parents[3]


def test_a_node_that_is_not_known_yet_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def known_at_the_third_question(address: str, node: str) -> dict[str, str]:
        asked.append((address, node))
        if len(asked) < 3:
            raise RuntimeError("not known yet")
        return {"node": node}

    monkeypatch.setattr(services, "get_node", known_at_the_third_question)
    with patient_start():
        assert services.get_node("here", node="7") == {"node": "7"}
    assert asked == [("here", "7")] * 3
    assert services.get_node is known_at_the_third_question


def test_a_node_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_environment, "SECONDS_TO_START", -1.0)  # the time is over at once

    def never_known(*_: object) -> None:
        raise RuntimeError("not known yet")

    monkeypatch.setattr(services, "get_node", never_known)
    with patient_start(), pytest.raises(RuntimeError, match="not known yet"):
        services.get_node()


def test_ray_still_starts_in_the_way_that_is_made_patient() -> None:
    """Ray's node module must look the functions up where `patient_start` replaces them."""
    for name in ("get_node", "start_raylet"):
        assert f"ray._private.services.{name}(" in inspect.getsource(node)


def test_the_ports_that_ray_would_wait_for_are_told_before_its_node_manager_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []
    agent: list[int] = []

    def start(node_id: str, session_dir: str, *, runtime_env_agent_port: int) -> str:
        told.append({path.name: path.read_text() for path in tmp_path.iterdir()})
        agent.append(runtime_env_agent_port)
        return "started"

    monkeypatch.setattr(services, "start_raylet", start)
    node_id = "ab" * 28
    with patient_start():
        result = services.start_raylet(node_id, session_dir=str(tmp_path), runtime_env_agent_port=0)
    assert result == "started"
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
    assert told == [{f"{name}_{node_id}": "-1" for name in names}]
    assert agent[0] in PORTS
    assert services.start_raylet is start


ASLEEP = """
import sys, time
if any("agent" in word and "ray" in word for word in sys.orig_argv):
    time.sleep(3600)
"""
STARTS = """
import ray
from fl_vitlora.flower.simulation.backend import KeptWorkers
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers

up = Ray(Workers(device="cpu", count=1), verbose=False)
up.wait()
backend = KeptWorkers(up.actors, 1, 600.0, {"client_resources": {"num_cpus": 1}})
backend.build(lambda: None)
print(ray.get(up.actors[0].process.remote()))
up.stop()
"""


@pytest.mark.slow
def test_ray_starts_though_its_agents_are_not_up(tmp_path: Path) -> None:
    """On a busy machine they need longer than the 15 s that Ray would wait for their ports."""
    (tmp_path / "sitecustomize.py").write_text(ASLEEP)
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
