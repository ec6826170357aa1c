"""A run over a version of Flower whose delivery this project does not know."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.server.superlink.fleet.vce import vce_api

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.runner import PausedError, run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.simulation.engine import Engine
from tests.whole_runs import SMALL


def other_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a function of Flower one more argument, as a later version might."""
    theirs: Callable[..., None] = vce_api.worker

    def worker(  # noqa: PLR0917 - the arguments that Flower passes
        messageins_queue: Any,
        messageres_queue: Any,
        node_info_store: Any,
        backend: Any,
        f_stop: Any,
        metrics: Any,
        another: object = None,
    ) -> None:
        del another
        theirs(messageins_queue, messageres_queue, node_info_store, backend, f_stop, metrics)

    monkeypatch.setattr(vce_api, "worker", worker)


def settings(folder: Path) -> dict[str, Any]:
    paths = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    return {**SMALL, "rounds": 3, "data.limit": 40, **paths}


def test_the_user_is_told_before_the_first_round_that_the_run_has_no_checkpoints(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_flower(monkeypatch)
    told: list[str] = []
    files: list[list[Path]] = []

    def show(line: dict[str, Any]) -> None:
        told.append(f"round {line['round']}")
        files.append(list((tmp_path / "run" / "checkpoint").glob("round-*")))

    config = configuration.load(None, settings(tmp_path))
    watch = Watch(note=told.append, show_round=show)
    run(config, strategies.load_for(config), watch, engine=engine)
    (warning,) = (sentence for sentence in told if "warning" in sentence)
    assert "has no checkpoints and cannot be resumed" in warning
    assert told.index(warning) < told.index("round 1")
    assert files == [[], [], []]
    assert (tmp_path / "run" / "result.json").exists()


def test_a_checkpoint_is_not_resumed_without_the_memory_of_its_clients(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.load(None, settings(tmp_path))
    pause = threading.Event()
    watch = Watch(pause=pause, show_round=lambda line: pause.set())
    with pytest.raises(PausedError):
        run(config, strategies.load_for(config), watch, engine=engine)
    other_flower(monkeypatch)
    with pytest.raises(UserError, match="install the version of Flower with which the run began"):
        run(config, strategies.load_for(config), engine=engine, resume=True)
