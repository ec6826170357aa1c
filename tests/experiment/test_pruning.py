"""Which trial of a search ends early, from what Optuna knows of the trials before it.

The rounds are handed to a trial as a run does; `test_searching` has whole runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.config.search import Search, read_search
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import searching
from fl_vitlora.experiment.trial_run import Attempt
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.reporting.search_tables import best_of, to_markdown
from tests.whole_runs import SMALL

optuna = pytest.importorskip("optuna", reason="needs the extra search")

RATE = "training.learning_rate"
GOOD, MIDDLE, BAD = (0.5, 0.8, 0.9), (0.4, 0.6, 0.7), (0.3, 0.2, 0.1)


def plan_of(prune: Any, goal: str = "accuracy", **more: Any) -> Search:
    space = {RATE: {"from": 1e-3, "to": 0.1, "log": True}}
    tree = {"search": space, "trials": 9, "prune": prune, "goal": goal}
    return read_search(tree, {**SMALL, "rounds": 3, "data.validation_fraction": 0.25, **more})


def line(number: int, value: float | None, measured_on: str = "validation") -> dict[str, Any]:
    return {"round": number, "accuracy": value, "loss": value, "measured_on": measured_on}


def play(plan: Search, folder: Path, values: tuple[float | None, ...]) -> int:
    """Plays a trial to its end, and returns the number of its rounds."""
    study, watch = searching.open_study(plan, folder), Watch()
    number = len(study.get_trials(deepcopy=False))
    attempt = Attempt(plan, study, folder, Engine(verbose=False), number)
    attempt._propose(RATE)
    rounds = 0
    for rounds, value in enumerate(values, start=1):
        attempt._note_round(line(rounds, value), watch)
        if watch.stop.is_set():
            break
    score = values[rounds - 1]
    result = {
        "communication": {"uplink_bytes": 1, "downlink_bytes": 2},
        "validation": {"accuracy": score, "loss": score},
        "rounds": rounds,
        "seconds": {"total": 1.0},
        "stopped": "caller" if watch.stop.is_set() else None,
    }
    attempt._end(result)
    return rounds


def states(plan: Search, folder: Path) -> list[str]:
    trials = searching.tell(plan, folder, searching.open_study(plan, folder))
    return [trial.state for trial in trials]


def test_a_trial_below_the_median_ends_after_the_rounds_that_every_trial_takes(
    tmp_path: Path,
) -> None:
    plan = plan_of({"after_trials": 2, "after_rounds": 2})
    assert [play(plan, tmp_path, values) for values in (GOOD, MIDDLE, BAD, GOOD)] == [3, 3, 2, 3]
    assert states(plan, tmp_path) == ["complete", "complete", "pruned", "complete"]


def test_nothing_is_pruned_before_enough_trials_or_if_it_is_switched_off(tmp_path: Path) -> None:
    for name, prune in (("few", {"after_trials": 3, "after_rounds": 1}), ("off", False)):
        folder = tmp_path / name
        folder.mkdir()
        played = [play(plan_of(prune), folder, values) for values in (GOOD, MIDDLE, BAD)]
        assert played == [3, 3, 3]


def test_a_loss_is_better_when_it_is_smaller(tmp_path: Path) -> None:
    plan = plan_of({"after_trials": 2, "after_rounds": 2}, goal="loss")
    assert [play(plan, tmp_path, values) for values in (BAD, MIDDLE, GOOD, BAD)] == [3, 3, 2, 3]
    trials = searching.tell(plan, tmp_path, searching.open_study(plan, tmp_path))
    best = best_of(plan, trials)
    assert best is not None
    assert (best.number, best.value) == (0, 0.1)


def test_rounds_that_were_not_evaluated_are_left_out(tmp_path: Path) -> None:
    plan = plan_of({"after_trials": 1, "after_rounds": 1})
    assert play(plan, tmp_path, GOOD) == 3
    assert play(plan, tmp_path, (None, None, 0.1)) == 3


def test_a_pruned_trial_has_no_value_and_is_never_the_best(tmp_path: Path) -> None:
    """Its later rounds might have been better; they were never run."""
    plan = plan_of({"after_trials": 1, "after_rounds": 1})
    for values in (MIDDLE, (0.1, 0.9, 0.99)):
        play(plan, tmp_path, values)
    trials = searching.tell(plan, tmp_path, searching.open_study(plan, tmp_path))
    assert [(trial.state, trial.value) for trial in trials] == [("complete", 0.7), ("pruned", None)]
    best = best_of(plan, trials)
    assert best is not None
    assert best.number == 0
    assert "Trial 0 of a search" in (tmp_path / "best.yaml").read_text()
    assert to_markdown(plan, trials).split("\n|")[2].startswith(" 0 | complete | 70.00 %")


def test_a_round_that_was_measured_on_test_images_is_an_error(tmp_path: Path) -> None:
    plan = plan_of(False)
    study = searching.open_study(plan, tmp_path)
    attempt = Attempt(plan, study, tmp_path, Engine(verbose=False), 0)
    with pytest.raises(UserError, match="measured on test images"):
        attempt._note_round(line(1, 0.9, "test"), Watch())


def test_an_interrupted_trial_keeps_its_proposal_and_does_not_report_a_round_twice(
    tmp_path: Path,
) -> None:
    """Optuna warns of a round that is reported twice, and a warning is an error in tests."""
    plan, engine = plan_of(True), Engine(verbose=False)
    first = Attempt(plan, searching.open_study(plan, tmp_path), tmp_path, engine, 0)
    value = first._propose(RATE)
    first._note_round(line(1, 0.5), Watch())
    assert states(plan, tmp_path) == ["interrupted"]
    again = Attempt(plan, searching.open_study(plan, tmp_path), tmp_path, engine, 0)
    assert again._propose(RATE) == value
    again._note_round(line(1, 0.5), Watch())
    again._note_round(line(2, 0.6), Watch())
    (trial,) = searching.open_study(plan, tmp_path).get_trials()
    assert trial.intermediate_values == {1: 0.5, 2: 0.6}


def rates_of(plan: Search, folder: Path, trials: Sequence[float], *, breaks: bool) -> list[float]:
    """Plays a trial for each measure, and returns the rates that were tried.

    Args:
        plan: The search.
        folder: The folder of the search.
        trials: The measure of each trial.
        breaks: True to begin each trial and to continue it as after a killed program.
    """
    folder.mkdir()
    for number, value in enumerate(trials):
        if breaks:
            study = searching.open_study(plan, folder)
            Attempt(plan, study, folder, Engine(verbose=False), number)._propose(RATE)
            again = searching.open_study(plan, folder)
            attempt = Attempt(plan, again, folder, Engine(verbose=False), number)
            attempt._propose(RATE)
            again.tell(number, value)
        else:
            play(plan, folder, (value,))
    return [trial.params[RATE] for trial in searching.open_study(plan, folder).get_trials()]


def test_proposals_depend_on_results_and_seed_and_not_on_interruptions(tmp_path: Path) -> None:
    """Optuna proposes the first ten trials at random, and the next ones from the results."""
    plan, rising = plan_of(False), [number / 12 for number in range(12)]
    one = rates_of(plan, tmp_path / "one", rising, breaks=False)
    assert rates_of(plan, tmp_path / "broken", rising, breaks=True) == one
    assert len(set(one)) == 12
    other = rates_of(plan, tmp_path / "other", rising[::-1], breaks=False)
    assert other[:10] == one[:10]
    assert other[10:] != one[10:]
    seeded = rates_of(plan_of(False, seed=8), tmp_path / "seeded", rising[:2], breaks=False)
    assert seeded != one[:2]
