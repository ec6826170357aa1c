"""The seed alone decides which clients fail and when; what happens then is what the kind says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, load
from fl_vitlora.errors import UserError
from fl_vitlora.federation import training_round
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.population.byzantine import hostile
from fl_vitlora.population.faults import fault_of, strike, unreliable
from tests.whole_runs import execute


def configure(kinds: Any = ("raise",), unreliable_clients: int = 5, **given: Any) -> Config:
    overrides = {path.replace("__", "."): value for path, value in given.items()}
    return load(
        None, {"faults.kinds": list(kinds), "faults.clients": unreliable_clients, **overrides}
    )


@given(clients=st.integers(1, 40), seed=st.integers(0, 99), data=st.data())
def test_as_many_as_asked_are_unreliable_and_no_other_ever_fails(
    clients: int, seed: int, data: st.DataObject
):
    wanted = data.draw(st.integers(0, clients))
    config = configure(("raise", "slow"), wanted, clients=clients, seed=seed)
    drawn = sorted(client for group in unreliable(config).values() for client in group)
    assert len(set(drawn)) == wanted
    for server_round in (1, 2):
        failing = [c for c in range(clients) if fault_of(config, c, server_round)]
        assert failing == drawn


def test_a_rate_is_the_chance_that_one_fails_in_a_round():
    config = configure(faults__rate=0.25, clients=20)
    drawn = unreliable(config)["raise"]
    told = {(c, r): fault_of(config, c, r) for c in drawn for r in range(1, 401)}
    assert told == {(c, r): fault_of(config, c, r) for c, r in told}
    assert 420 < sum(kind is not None for kind in told.values()) < 580  # 500, 4 deviations of 19
    each = [sum(told[c, r] is not None for r in range(1, 401)) for c in drawn]
    assert all(60 < count < 140 for count in each)


def test_without_faults_nothing_happens():
    assert unreliable(Config()) == {}
    assert all(fault_of(Config(), client, 1) is None for client in range(20))


def test_unreliable_clients_are_drawn_apart_from_hostile_ones():
    config = configure(attack__kinds=["scale"], attack__clients=5)
    assert unreliable(config)["raise"] != hostile(config)["scale"]


def one(kind: str, **given: Any) -> Config:
    """All clients of an experiment, which is one."""
    return configure([kind], 1, clients=1, **given)


def test_who_is_to_raise_says_who_and_when():
    told = r"^simulated fault of client 0 in round 3 \(setting faults\.kinds\)$"
    with pytest.raises(RuntimeError, match=told):
        strike(one("raise"), 0, 3)


def test_who_is_slow_takes_its_time():
    begin = time.perf_counter()
    strike(one("slow", faults__delay=0.2), 0, 1)
    assert time.perf_counter() - begin >= 0.2


def test_who_is_to_crash_is_gone_at_once():
    code = (
        "from fl_vitlora.config import load; from fl_vitlora.population.faults import strike\n"
        "config = load(None, {'faults.kinds': ['crash'], 'faults.clients': 1, 'clients': 1})\n"
        "try: strike(config, 0, 1)\n"
        "finally: print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (configure(("raise", "slow"), 0), ["faults.kinds raise,slow", "faults.clients="]),
        (configure((), 5), ["faults.clients 5", "faults.kinds=["]),
        (configure(clients=4), ["faults.clients 5", "4 clients", "at most 4"]),
    ],
    ids=["nobody", "nothing", "too many"],
)
def test_faults_that_cannot_be_are_refused_in_a_line(config: Config, parts: list[str]):
    with pytest.raises(UserError) as caught:
        policies.check(config)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


TWENTY: dict[str, Any] = {
    "clients": 20,
    "fraction": 1.0,
    "data__limit": 320,
    "data__partition": "iid",
    "engine__cohort": 1,
}


@pytest.mark.slow
def test_a_run_in_which_five_of_twenty_always_raise_is_the_run_of_the_other_fifteen(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, engine: Engine
):
    """The same shards, and in the second run a server that never asks the five."""
    folder, alone = (tmp_path_factory.mktemp(name) for name in ("failing", "alone"))
    failing = execute(folder, engine, faults__kinds=["raise"], faults__clients=5, **TWENTY)
    drawn = unreliable(failing.config)["raise"]
    others = [client for client in range(20) if client not in drawn]
    monkeypatch.setattr(training_round, "sample", lambda *given: others)
    fifteen = execute(alone, engine, encryption__key_file=str(folder / "owner.key"), **TWENTY)

    assert [line["participants"] for line in failing.lines] == [others, others]
    assert [line["participants"] for line in fifteen.lines] == [others, others]
    for line in failing.lines:
        told = "simulated fault of client {} in round {} (setting faults.kinds)"
        assert line["failures"] == [
            {"client": client, "reason": told.format(client, line["round"])} for client in drawn
        ]
        for client in drawn:
            name = f"round-{line['round']:05d}-client-{client:05d}.txt"
            assert (
                told.format(client, line["round"])
                in (failing.folder / "failures" / name).read_text()
            )
    assert failing.result["faults"] == {"raise": drawn}
    assert failing.result["failures"]["updates"] == 10
    assert failing.result["failures"]["clients"] == {str(client): 2 for client in drawn}
    found, expected = (load_file(run.folder / "model.safetensors") for run in (failing, fifteen))
    assert found.keys() == expected.keys()
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
    assert fifteen.result["failures"]["updates"] == 0
    assert failing.result["accuracy"] == fifteen.result["accuracy"]


@pytest.mark.slow
def test_a_client_that_takes_its_worker_along_is_the_only_one_left_out(
    tmp_path: Path, engine: Engine
):
    """Three train in a batch: the two beside it are asked again, each alone."""
    done = execute(
        tmp_path,
        engine,
        **{**TWENTY, "engine__cohort": 3},
        rounds=1,
        faults__kinds=["crash"],
        faults__clients=1,
    )
    (crashing,) = unreliable(done.config)["crash"]
    (line,) = done.lines
    (failed,) = line["failures"]
    assert failed["client"] == crashing
    assert failed["reason"].startswith("the worker died")
    assert line["participants"] == [c for c in range(20) if c != crashing]
    assert 1 <= len(line["taken_apart"]) <= 2  # seven bundles
    assert set(line["taken_apart"]) < set(line["participants"])
    assert done.result["failures"]["clients"] == {str(crashing): 1}
    assert len(list((done.folder / "failures").iterdir())) == 1
