"""Ray gets the time that it needs to start on a busy machine, and no more than that."""

from __future__ import annotations

import inspect

import pytest
from ray._private import node, services

from fl_vitlora.flower.simulation import ray_environment
from fl_vitlora.flower.simulation.ray_environment import patient_start


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


def test_ray_still_asks_in_the_way_that_is_made_patient() -> None:
    """Ray's node module must look the function up where `patient_start` replaces it."""
    assert "ray._private.services.get_node(" in inspect.getsource(node)
