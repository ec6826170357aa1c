"""`fv.run`: forms of settings, a strategy of one's own, callbacks, threads, an early end."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fl_vitlora as fv
from fl_vitlora.config import Config, load
from fl_vitlora.config.loading import to_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.library.running import settings_of
from strategies.fedavg import FedAvg
from tests.whole_runs import SMALL


def test_an_experiment_is_given_as_a_mapping_a_file_or_a_config(tmp_path: Path) -> None:
    expected = load(None, {"clients": 3, "data.limit": 50, "rounds": 2})
    (tmp_path / "it.yaml").write_text(to_yaml(load(None, {"clients": 3, "data.limit": 50})))
    rounds = {"rounds": 2}
    assert settings_of({"clients": 3, "data": {"limit": 50}}, rounds) == expected
    assert settings_of({"clients": 3, "data.limit": 50, "rounds": 9}, rounds) == expected
    assert settings_of(tmp_path / "it.yaml", rounds) == expected
    assert settings_of(load(None, {"clients": 3, "data.limit": 50}), rounds) == expected
    assert settings_of(None) == Config() == settings_of({})


def test_code_that_only_a_file_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("strategy: theirs:Theirs\n")
    with pytest.raises(UserError, match="only a file names this code"):
        fv.run(path)
    with pytest.raises(UserError, match="theirs"):  # named by the caller, so it is looked for
        fv.run({"strategy": "theirs:Theirs"})


def test_a_callback_of_one_run_starts_anew_in_the_next() -> None:
    stopping = fv.EarlyStopping(1, "loss", least=0.1)
    for _ in range(2):
        stopping.on_run_begin(Config())
        assert not stopping.on_round_end({"loss": 2.0})
        assert not stopping.on_round_end({"loss": 1.0})
        assert stopping.on_round_end({"loss": 0.95})
    with pytest.raises(ValueError, match="expected 'accuracy' or 'loss'"):
        fv.EarlyStopping(1, "speed")
    with pytest.raises(ValueError, match="at least 1"):
        fv.EarlyStopping(0)


@dataclass(frozen=True, kw_only=True)
class Slow(FedAvg):
    """A strategy that no file of the strategies' folder has."""


class Notes(fv.Callback):
    may_stop = True

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_run_begin(self, config: Config) -> None:
        self.heard.append(Path(str(config.out)).name)

    def on_round_end(self, line: dict[str, Any]) -> bool:
        self.heard.append(line["round"])
        return bool(line["round"] == 2)

    def on_run_end(self, run: fv.FinishedRun) -> None:
        self.heard.append(run)


@pytest.mark.slow
def test_who_may_not_stop_a_run_and_tries_is_told(tmp_path: Path) -> None:
    class Eager(fv.Callback):
        def on_round_end(self, line: dict[str, Any]) -> bool:
            return True

    where = {"out": str(tmp_path / "run"), "encryption.key_file": str(tmp_path / "owner.key")}
    with pytest.raises(UserError, match=r"Eager.on_round_end returned True, but may_stop"):
        fv.run(SMALL, where, callbacks=[Eager()])


@pytest.mark.slow
def test_a_run_in_a_thread_is_followed_and_ended_by_its_callback_twice(tmp_path: Path) -> None:
    found = []

    def work() -> None:
        for name in ("one", "two"):
            notes = Notes()
            where = {
                "out": str(tmp_path / name),
                "encryption.key_file": str(tmp_path / "owner.key"),
            }
            run = fv.run(
                SMALL, {**where, "rounds": 5}, strategy=Slow(server_rate=0.5), callbacks=[notes]
            )
            assert notes.heard == [name, 1, 2, run]
            found.append(run)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    first, second = found
    assert first.result["stopped"] == "caller"
    assert (first.result["rounds"], first.result["rounds_planned"]) == (2, 5)
    assert "Slow" in first.result["strategy_class"]
    assert first.result["strategy_parameters"] == {"server_rate": 0.5}
    assert first.accuracy == second.accuracy
    assert [a["loss"] for a in first.history] == [b["loss"] for b in second.history]
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert len(first.predict(first.encrypt(images), encrypted=True)) == 1
    with pytest.raises(UserError, match=r"test_running:Slow.*only a file names this code"):
        fv.load_run(first.folder).model()
    later = fv.load_run(first.folder, trust=[first.config.strategy.name])
    assert torch.equal(later.predict(images).probabilities, first.predict(images).probabilities)
