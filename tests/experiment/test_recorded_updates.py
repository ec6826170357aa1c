"""Observers see what the server sees, and one of them writes it into the run folder."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import strategies
from fl_vitlora.config import load
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.recorded_updates import RecordedUpdates, file_of, read_round
from fl_vitlora.experiment.runner import run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.loop import PausedError
from fl_vitlora.federation.observer import Sight
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.state import State
from fl_vitlora.strategy import SEVERAL, Update, averaged
from tests.whole_runs import SMALL

CODED = {"compression.uplink": "int8", "compression.downlink": "int8"}
SUMS = {"privacy.secure_aggregation": True, "fraction": 1.0}


class Collector:
    """An observer of one short file: it keeps what it is shown."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []

    def observe(self, sight: Sight) -> None:
        self.sights.append(sight)


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def same(one: Sight, other: Sight) -> bool:
    told = [
        [vars(update) | {"delta": 0, "report": 0} for update in s.updates] for s in (one, other)
    ]
    pairs = zip(one.updates, other.updates, strict=True)
    return (
        (one.round, told[0]) == (other.round, told[1])
        and equal(one.model, other.model)
        and all(equal(a.delta, b.delta) and equal(a.report, b.report) for a, b in pairs)
    )


@pytest.fixture
def observed(tmp_path: Path, engine: Engine) -> Callable[..., tuple[list[Sight], Path]]:
    def make(**given: Any) -> tuple[list[Sight], Path]:
        settings = {
            **SMALL,
            "record_updates": True,
            "encryption.key_file": str(tmp_path / "owner.key"),
            "out": str(tmp_path / "run"),
            **given,
        }
        config, collector = load(None, settings), Collector()
        run(config, strategies.load_for(config), engine=engine, observers=[collector])
        return collector.sights, tmp_path / "run"

    return make


@pytest.mark.parametrize(
    ("given", "clients"),
    [({}, 3), ({**CODED, "strategy": "scaffold"}, 3), (SUMS, 1)],
    ids=["plain", "coded, with reports", "summed securely"],
)
def test_the_run_folder_has_to_the_bit_what_the_server_saw(
    observed: Callable[..., tuple[list[Sight], Path]], given: dict[str, Any], clients: int
) -> None:
    seen, folder = observed(**given)
    assert [sight.round for sight in seen] == [1, 2]
    assert [len(sight.updates) for sight in seen] == [clients] * 2
    assert all(same(sight, read_round(folder, sight.round)) for sight in seen)
    hidden = {update.client for sight in seen for update in sight.updates} == {SEVERAL}
    assert hidden == ("privacy.secure_aggregation" in given)
    assert any(update.report for sight in seen for update in sight.updates) == (
        given.get("strategy") == "scaffold"
    )


@pytest.mark.parametrize("given", [{}, CODED, SUMS], ids=["plain", "coded", "summed securely"])
def test_what_is_recorded_is_what_the_strategy_was_given(
    observed: Callable[..., tuple[list[Sight], Path]], given: dict[str, Any]
) -> None:
    """The mean of the updates that were recorded leads to the model of the next round."""
    _, folder = observed(**given)
    first, second = read_round(folder, 1), read_round(folder, 2)
    assert equal(averaged(first.model, first.updates), second.model)


@pytest.mark.slow
def test_a_run_that_was_interrupted_records_what_the_whole_run_records(
    tmp_path: Path, engine: Engine
) -> None:
    def play(name: str, watch: Watch | None = None, *, resume: bool = False) -> None:
        settings = {
            **SMALL,
            "rounds": 4,  # a pause is heeded before the next round but one
            "record_updates": True,
            "encryption.key_file": str(tmp_path / "owner.key"),
            "out": str(tmp_path / name),
        }
        config = load(None, settings)
        run(config, strategies.load_for(config), watch, engine=engine, resume=resume)

    notes: list[str] = []
    play("whole", Watch(note=notes.append))
    assert [note for note in notes if "records the model and every update of 4 rounds" in note]
    pause = threading.Event()
    with pytest.raises(PausedError):
        play("broken", Watch(pause=pause, show_round=lambda line: pause.set()))
    play("broken", resume=True)
    for number in range(1, 5):
        assert same(read_round(tmp_path / "whole", number), read_round(tmp_path / "broken", number))


def sight(number: int, client: int) -> Sight:
    delta = {"w": torch.full((2,), float(client))}
    update = Update(client=client, samples=4, loss=0.5, delta=delta, steps=2)
    return Sight(round=number, model={"w": torch.zeros(2)}, updates=(update,))


def test_a_round_that_is_repeated_replaces_its_file(tmp_path: Path) -> None:
    recorder = RecordedUpdates(tmp_path)
    for client in (1, 2):
        recorder.observe(sight(7, client))
    assert same(read_round(tmp_path, 7), sight(7, 2))
    assert [path.name for path in (tmp_path / "updates").iterdir()] == ["round-00007.safetensors"]


def test_what_is_recorded_is_for_its_owner_alone(tmp_path: Path) -> None:
    RecordedUpdates(tmp_path).observe(sight(1, 0))
    for path, mode in ((tmp_path / "updates", 0o700), (file_of(tmp_path, 1), 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    RecordedUpdates(tmp_path).observe(sight(1, 0))
    with pytest.raises(
        UserError, match=r"round-00002.safetensors: this file does not exist.*record-updates"
    ):
        read_round(tmp_path, 2)
    path = file_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"round-00001.safetensors is damaged"):
        read_round(tmp_path, 1)
