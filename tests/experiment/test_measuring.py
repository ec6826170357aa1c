"""Which rounds are measured, on which images, and what is left to measure at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.communication.ledger import Entry
from fl_vitlora.config import load
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.views import VALIDATION
from fl_vitlora.experiment.measuring import Measuring
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.result import best
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.evaluation import ALL_VIEWS, Measured, Score
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundReport
from fl_vitlora.reporting.run_folder import RunFolder

MODEL = GlobalModel(tensors={})


class Clients:
    """Clients with a hundred images, whose accuracy on validation images is given by round."""

    views = ALL_VIEWS

    def __init__(self, accuracies: Sequence[float] = ()) -> None:
        self.accuracies = accuracies
        self.asked: list[tuple[int, tuple[str, ...], int | None]] = []

    def measure(
        self, server_round: int, model: GlobalModel, views: Sequence[str], most: int | None = None
    ) -> Measured:
        self.asked.append((server_round, tuple(views), most))
        accuracy = self.accuracies[server_round - 1] if self.accuracies else 0.5
        images = most or 100
        held = {VALIDATION: Score(accuracy, 1.0, images)} if VALIDATION in views else {}
        return held | {view: Score(0.25, 2.0, images) for view in views if view != VALIDATION}


def measuring(folder: Path, clients: Clients, given: dict[str, Any]) -> Measuring:
    config = load(None, {"out": str(folder / "run"), "rounds": 4, **given})
    run = RunFolder.create(config)
    record = Record(config, tuple("ab"), run, Logbook.begin(run.path), Watch())
    return Measuring(evaluator=clients, config=config, record=record)


def play(run: Measuring, rounds: int) -> None:
    """Measures and reports rounds as the server loop does."""
    for number in range(1, rounds + 1):
        run.record.ledger.record(
            Entry(round=number, client=0, direction="uplink", groups={"head": 1}, overhead=0)
        )
        accuracy, loss = run.evaluate(number, MODEL) or (None, None)
        report = RoundReport(
            round=number,
            accuracy=accuracy,
            loss=loss,
            train_loss=1.0,
            participants=(0,),
            failures=(),
            taken_apart=(),
            aggregation_error=None,
            moved=True,
            seconds=1.0,
        )
        run.record.report(report, MODEL)


def finish(run: Measuring) -> None:
    run.finish(MODEL, lambda server_round: None)


HELD = {"data.validation_fraction": 0.1}
RARELY = {"evaluation.every": 3}
FEW = {"evaluation.images": 10}
BOTH = (VALIDATION, RIGHT_KEY)
EVERYTHING = (VALIDATION, *ALL_VIEWS)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, [*((n, (RIGHT_KEY,), None) for n in (1, 2, 3)), (4, ALL_VIEWS, None)]),
        (HELD, [*((n, BOTH, None) for n in (1, 2, 3)), (4, EVERYTHING, None)]),
        (RARELY, [(3, (RIGHT_KEY,), None), (4, ALL_VIEWS, None)]),
        (FEW, [*((n, (RIGHT_KEY,), 10) for n in (1, 2, 3, 4)), (4, ALL_VIEWS, None)]),
        (
            {**HELD, **RARELY, **FEW},
            [(3, BOTH, 10), (4, BOTH, 10), (4, EVERYTHING, None)],
        ),
    ],
    ids=["all", "validation", "rarely", "few images", "all at once"],
)
def test_the_last_round_is_always_measured_and_the_last_model_on_all_images(
    tmp_path: Path, given: dict[str, Any], asked: list[Any]
):
    """All rounds are measured on the same images, or they could not be compared."""
    run = measuring(tmp_path, clients := Clients(), given)
    play(run, 4)
    finish(run)
    assert clients.asked == asked
    assert {score.images for score in run.record.measured.values()} == {100}


@pytest.mark.parametrize(
    ("given", "ended", "last"),
    [
        ({}, 2, []),
        (HELD, 2, []),
        (RARELY, 3, []),
        (RARELY, 2, [(2, ALL_VIEWS, None)]),
        ({**HELD, **FEW}, 2, [(2, EVERYTHING, None)]),
    ],
)
def test_clients_are_asked_again_only_if_a_run_that_ended_early_lacks_its_accuracy(
    tmp_path: Path, given: dict[str, Any], ended: int, last: list[Any]
):
    run = measuring(tmp_path, clients := Clients(), given)
    play(run, ended)
    before = len(clients.asked)
    finish(run)
    assert clients.asked[before:] == last
    assert run.record.measured[RIGHT_KEY].images == 100
    assert run.needs_last_messages == bool({*given} & {*RARELY, *FEW})


def test_a_round_that_is_not_measured_has_no_accuracy(tmp_path: Path):
    run = measuring(tmp_path, Clients(), {**HELD, "evaluation.every": 2, **FEW})
    run.record.evaluated["of"] = "the round before"
    play(run, 2)
    without, line = run.record.lines
    for name in ("accuracy", "loss", "measured_on", "measured_images"):
        assert without[name] is None
    assert not {"test_accuracy", "strategy_evaluation"} & without.keys()
    assert (line["accuracy"], line["loss"]) == (0.5, 1.0)
    assert (line["measured_on"], line["measured_images"]) == ("validation", 10)
    assert (line["test_accuracy"], line["test_loss"], line["test_images"]) == (0.25, 2.0, 10)
    assert run.record.last is not None
    run.record.lines.pop()
    assert run.record.last is None


def test_the_best_model_is_chosen_by_validation_and_told_with_its_test_accuracy(tmp_path: Path):
    run = measuring(tmp_path, Clients([0.5, 0.75, 0.75, 0.5]), HELD)
    play(run, 4)
    finish(run)
    assert best(run.record.lines, run.record.best_on_test) == {
        "round": 2,
        "accuracy": 0.75,
        "measured_on": "validation",
        "measured_images": 100,
        "test_accuracy": 0.25,
        "test_loss": 2.0,
        "test_images": 100,
    }
    folder = RunFolder(tmp_path / "run")
    assert folder.read_best(2) == {}
    assert folder.read_best(3) is None


@pytest.mark.parametrize(
    ("accuracies", "patience", "ends"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, None),
        ([0.4, 0.3, 0.3, 0.3], 2, 3),
        ([0.4, 0.4, 0.4, 0.4], 1, 2),  # as good is not better
        ([0.4, 0.3, 0.5, 0.3], 2, None),
    ],
)
def test_a_run_gives_up_if_validation_does_not_rise(
    tmp_path: Path, accuracies: list[float], patience: int, ends: int | None
):
    run = measuring(tmp_path, Clients(accuracies), {**HELD, "evaluation.patience": patience})
    play(run, 4)
    lines, found = list(run.record.lines), []
    for number in range(1, 5):
        run.record.lines[:] = lines[:number]
        found.append(run.gives_up(number))
    assert found == [ends is not None and number >= ends for number in range(1, 5)]


def test_without_patience_no_run_gives_up(tmp_path: Path):
    run = measuring(tmp_path, Clients([0.4, 0.3, 0.2, 0.1]), HELD)
    play(run, 4)
    assert not run.gives_up(4)
