"""An observer looks, and that is all it can do to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import strategies
from fl_vitlora.config import load
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.observing import show
from fl_vitlora.experiment.recorded_updates import RecordedUpdates
from fl_vitlora.experiment.runner import run
from fl_vitlora.federation.observer import Sight
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.storage.files import WriteError
from fl_vitlora.strategy import Update
from fl_vitlora.testing import check_observer
from fl_vitlora.testing.observer import ObserverError, made_up_rounds
from tests.whole_runs import SMALL


class Collector:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []

    def observe(self, sight: Sight) -> None:
        self.sights.append(sight)


class Writer:
    """Writes to everything that it is shown, in every way that is known."""

    def observe(self, sight: Sight) -> None:
        for update in sight.updates:
            for state in (update.delta, update.report):
                for name in list(state):
                    state[name].data.add_(1.0)
                    state[name].numpy()[...] *= -3.0
                state.clear()
        for tensor in sight.model.values():
            tensor.fill_(torch.nan)


def sight() -> Sight:
    delta = {"w": torch.tensor([1.0, 2.0])}
    update = Update(client=3, samples=4, loss=0.5, delta=delta, report={"r": torch.ones(1)})
    return Sight(round=5, model={"w": torch.zeros(2)}, updates=[update])


def test_an_observer_that_writes_reaches_neither_the_server_nor_another_observer() -> None:
    collector, shown = Collector(), sight()
    show([Writer(), collector, Writer()], shown)
    for seen in (shown, *collector.sights):
        assert seen.model["w"].tolist() == [0.0, 0.0]
        assert seen.updates[0].delta["w"].tolist() == [1.0, 2.0]
        assert seen.updates[0].report["r"].tolist() == [1.0]
    assert [seen.round for seen in collector.sights] == [5]


def test_what_an_observer_keeps_stays_as_it_was_when_the_server_goes_on() -> None:
    collector, shown = Collector(), sight()
    show([collector], shown)
    shown.model["w"].add_(1.0)
    assert collector.sights[0].model["w"].tolist() == [0.0, 0.0]


def test_an_error_in_an_observer_is_told_in_a_line_with_its_place() -> None:
    class Careless:
        def observe(self, sight: Sight) -> None:
            _ = sight.updates[7]

    with pytest.raises(UserError, match=r"^observer Careless, round 5: IndexError: .*, line \d+\)"):
        show([Careless()], sight())


def test_a_disk_that_is_full_is_not_taken_for_a_mistake_in_the_observer() -> None:
    class Full:
        def observe(self, sight: Sight) -> None:
            raise WriteError(Path("updates"), "no space left")

    with pytest.raises(WriteError, match="no space left"):
        show([Full()], sight())


@pytest.mark.slow
def test_a_run_with_an_observer_that_writes_has_the_bits_of_one_without(
    tmp_path: Path, engine: Engine
) -> None:
    models = []
    for name, observers in (("plain", []), ("observed", [Writer()])):
        paths = {"encryption.key_file": str(tmp_path / "owner.key"), "out": str(tmp_path / name)}
        config = load(None, {**SMALL, "compression.uplink": "int8", **paths})
        run(config, strategies.load_for(config), engine=engine, observers=observers)
        models.append(load_file(tmp_path / name / "model.safetensors"))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_recorder_keeps_to_the_contract(tmp_path: Path) -> None:
    check_observer(RecordedUpdates(tmp_path))
    names = sorted(path.name for path in (tmp_path / "updates").iterdir())
    assert names == [f"round-{number:05d}.safetensors" for number in (1, 2, 3)]


def breaks(deed: Callable[[Sight], Any]) -> Any:
    """Returns an observer that does one thing to every round."""

    class Bad:
        def observe(self, sight: Sight) -> None:
            deed(sight)

    return Bad()


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (lambda s: s.updates[0], "no usable update: it raises IndexError"),
        (
            lambda s: s.updates and s.updates[0].rank + 1,
            "the mean of all updates alone: it raises TypeError",
        ),
        (lambda s: s.model["head.bias"].add_(1), "single updates: it changes model head.bias"),
        (lambda s: s.model.pop("head.bias"), "single updates: it changes model head.bias"),
        (lambda s: s.updates[1].report.clear(), "it changes the report of client 1"),
        (
            lambda s: len(s.updates) == 1 and s.updates[0].delta.clear(),
            "the mean of all updates alone: it changes the delta of the mean",
        ),
        (
            lambda s: s.updates[3].delta["head.weight"].data.mul_(2),
            "it changes the delta of client 3: head.weight",
        ),
    ],
)
def test_a_bad_observer_is_told_what_it_does_wrong(deed: Callable[[Sight], Any], said: str) -> None:
    with pytest.raises(ObserverError) as caught:
        check_observer(breaks(deed))
    assert said in str(caught.value)


def test_the_made_up_rounds_are_of_every_kind() -> None:
    rounds = [sight for _, sight in made_up_rounds()]
    assert [len(sight.updates) for sight in rounds] == [4, 1, 0, 4]
    assert {update.members for sight in rounds for update in sight.updates} == {1, 4}
    assert any(update.report for update in rounds[0].updates)
