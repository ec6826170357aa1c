"""Real searches: tiny trials over Flower and Ray, chosen on validation images alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import strategies
from fl_vitlora.command_line.searching import _end
from fl_vitlora.config import Config, load
from fl_vitlora.config.search import Search, read_search
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import searching
from fl_vitlora.experiment.search_checks import check_search, check_trial
from fl_vitlora.experiment.searching import SearchStoppedError
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.loop import PausedError
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, LoadStrategy
from fl_vitlora.reporting.search_tables import Trial
from tests.waiting import WATCHDOG, wait_until
from tests.whole_runs import SMALL

pytest.importorskip("optuna", reason="needs the extra search")

ROOT = Path(__file__).resolve().parents[2]
RATE = "training.learning_rate"
SPACE = {RATE: {"from": 1e-3, "to": 0.1, "log": True}, "training.batch_size": [8, 16]}


def plan_of(
    place: Path, search: Any = SPACE, *, rounds: int = 2, seed: int = 7, **more: Any
) -> Search:
    ring = {"encryption.key_file": str(place / "owner.key"), "rounds": rounds, "seed": seed}
    fixed = {**SMALL, "data.validation_fraction": 0.25, **ring, "out": str(place / "search")}
    return read_search({"search": search, "trials": 3, "prune": False, **more}, fixed)


def found(
    plan: Search, watch: Watch | None = None, load: LoadStrategy = strategies.load_for
) -> list[Trial]:
    """Runs a search to its end."""
    folder = Path(str(plan.out))
    with searching.prepare_folder(folder, plan):
        list(searching.search(plan, folder, load, watch))
        return told(plan)


def told(plan: Search) -> list[Trial]:
    folder = Path(str(plan.out))
    return searching.tell(plan, folder, searching.open_study(plan, folder))


class Failing:
    """Makes the strategy of a trial, or fails as if the disk were full for a moment.

    Args:
        times: The number of calls that fail.
        error: The error of these calls.
    """

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.times, self.error = times, error or RuntimeError("no space left on the disk")

    def __call__(self, config: Config) -> AnyStrategy:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return strategies.load_for(config)


def rows(place: Path) -> list[dict[str, str]]:
    with (place / "search" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tried(trials: list[dict[str, str]]) -> list[tuple[str, ...]]:
    names = ("trial", "state", "validation_accuracy", RATE, "training.batch_size", "rounds")
    return [tuple(row[name] for name in names) for row in trials]


def result_of(place: Path, number: int) -> dict[str, Any]:
    text = (place / "search" / f"trial-{number:05d}" / "result.json").read_text()
    result: dict[str, Any] = json.loads(text)
    return result


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three trials, without interruption."""
    place = tmp_path_factory.mktemp("searched")
    (place / "owner.key").write_text("07" * 32)
    (place / "owner.key").chmod(0o600)
    found(plan_of(place))
    return place


@pytest.mark.slow
def test_each_trial_has_the_validation_accuracy_of_its_run(searched: Path) -> None:
    for number, row in enumerate(rows(searched)):
        result = result_of(searched, number)
        assert row["state"] == "complete"
        assert float(row["validation_accuracy"]) == result["validation"]["accuracy"]
        config = load(str(searched / "search" / row["folder"] / "config.yaml"))
        assert config.training.learning_rate == float(row[RATE])
        assert str(config.training.batch_size) == row["training.batch_size"]
    assert len({row[RATE] for row in rows(searched)}) == 3


@pytest.mark.slow
def test_the_best_trial_runs_from_its_file_and_has_the_same_accuracy(searched: Path) -> None:
    trials = rows(searched)
    best = max(trials, key=lambda row: float(row["validation_accuracy"]))
    file = searched / "search" / "best.yaml"
    assert f"Trial {best['trial']} of a search" in file.read_text().splitlines()[0]
    command = [sys.executable, "simulate.py", "--config", str(file), "--out"]
    subprocess.run([*command, str(searched / "again")], cwd=ROOT, check=True, capture_output=True)
    again = json.loads((searched / "again" / "result.json").read_text())
    assert again["validation"]["accuracy"] == float(best["validation_accuracy"])
    assert again["accuracy"] == result_of(searched, int(best["trial"]))["accuracy"]


@pytest.mark.slow
def test_test_images_decide_nothing(searched: Path) -> None:
    """The best trial is that of the validation images, and no table has a test accuracy."""
    trials, text = rows(searched), (searched / "search" / "trials.md").read_text()
    assert not [name for name in trials[0] if "accuracy" in name and "validation" not in name]
    first = text.split("\n|")[2]
    best = max(trials, key=lambda row: float(row["validation_accuracy"]))
    assert first.startswith(f" {best['trial']} | complete |")


@pytest.mark.slow
def test_a_killed_search_continues_its_trial_and_ends_as_if_nothing_had_happened(
    searched: Path, tmp_path: Path
) -> None:
    (tmp_path / "owner.key").write_text("07" * 32)
    (tmp_path / "owner.key").chmod(0o600)
    plan = plan_of(tmp_path)
    fixed = {key: value for key, value in plan.to_tree().items() if key != "search"}
    file = tmp_path / "search.yaml"
    file.write_text(write_yaml({**fixed, "search": SPACE, "prune": False}))
    out = tmp_path / "search"
    command = [sys.executable, "simulate.py", "--search", str(file), "--out", str(out)]
    lines = out / "trial-00001" / "rounds.jsonl"
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_until(
            lambda: lines.exists() and b"\n" in lines.read_bytes(),
            lambda: process.poll() is None,
        )
        os.killpg(process.pid, signal.SIGKILL)
    assert [row["state"] for row in rows(tmp_path)] == ["complete"]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=WATCHDOG
    )
    assert "best settings" in done.stdout
    assert tried(rows(tmp_path)) == tried(rows(searched))
    assert [path.name for path in sorted(out.glob("trial-*"))] == [
        f"trial-{number:05d}" for number in range(3)
    ]


@pytest.mark.slow
def test_a_search_that_has_ended_runs_nothing_and_more_trials_may_be_added(searched: Path) -> None:
    before = rows(searched)
    more = Watch(announce=lambda phase: pytest.fail(f"{phase}, but nothing is left to run"))
    assert [trial.state for trial in found(plan_of(searched), more)] == ["complete"] * 3
    assert rows(searched) == before
    assert len(found(plan_of(searched, trials=4))) == 4
    assert rows(searched)[:3] == before


@pytest.mark.slow
def test_a_bad_trial_is_pruned_after_a_round_and_never_becomes_the_best(tmp_path: Path) -> None:
    """A rate of 1e-9 learns nothing. With this seed some trials have it, and others not."""
    space = {RATE: [0.02, 1e-9], "training.batch_size": [8, 16]}
    prune = {"after_trials": 1, "after_rounds": 1}
    plan = plan_of(tmp_path, space, rounds=4, seed=1, trials=5, prune=prune)
    trials = found(plan)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        result = result_of(tmp_path, trial.number)
        assert (result["stopped"], trial.value) == ("caller", None)
        assert trial.rounds == result["rounds"] < 4
    best = load(str(tmp_path / "search" / "best.yaml"))
    assert best.training.learning_rate == 0.02
    assert "1e-09" in {trial.values[RATE] for trial in pruned}


@pytest.mark.slow
def test_a_refused_trial_is_listed_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    space = {"finetuning.method": ["head", "lora"], "strategy": ["flora", "fedavg"]}
    trials = found(plan_of(tmp_path, space, rounds=1, seed=1, trials=3))
    states = {(t.values["finetuning.method"], t.values["strategy"], t.state) for t in trials}
    assert ("head", "flora", "refused") in states
    assert ("lora", "flora", "refused") not in states
    reasons = {trial.problem for trial in trials if trial.state == "refused"}
    assert all("strategy flora needs low-rank matrices" in reason for reason in reasons)
    text = (tmp_path / "search" / "trials.md").read_text()
    assert "was refused: strategy flora needs low-rank matrices" in text


@pytest.mark.slow
def test_a_search_that_is_paused_names_the_trial(tmp_path: Path) -> None:
    watch = Watch()
    plan = plan_of(tmp_path, trials=2)
    ended = Watch(show_round=lambda line: watch.pause.set(), pause=watch.pause)
    with pytest.raises(PausedError, match="trial 1 of 2"):
        found(plan, ended)
    assert [trial.state for trial in found(plan)] == ["complete", "complete"]


@pytest.mark.slow
def test_a_trial_that_failed_is_repeated_with_the_same_settings(tmp_path: Path) -> None:
    """A trial that diverges is not repeated, because its settings would lead to the same again."""
    space = {RATE: [0.05, 1e300], "training.batch_size": [8, 16]}
    plan = plan_of(tmp_path, space, rounds=1, seed=2)  # the seed decides which rates are tried
    first = found(plan, load=Failing(1))
    assert first[0].state == "failed"
    again = found(plan)
    assert (again[0].again, again[3].values) == (3, first[0].values)
    assert [trial.state for trial in again[:3]] == [trial.state for trial in first]
    assert all(
        trial.state == ("complete" if trial.values[RATE] == "0.05" else "diverged")
        for trial in again[1:]
    )
    assert {trial.values[RATE] for trial in again[1:]} == {"0.05", "1e+300"}
    assert found(plan) == again
    assert "trial 3 repeats it" in (tmp_path / "search" / "trials.md").read_text()


def test_a_search_stops_after_two_failed_trials_in_a_row(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {RATE: {"from": 1e-3, "to": 0.1}}, trials=4)
    with pytest.raises(SearchStoppedError, match="trials 0 and 1 failed one after the other"):
        found(plan, load=Failing(9))
    first = told(plan)
    assert [trial.state for trial in first] == ["failed", "failed"]
    with pytest.raises(SearchStoppedError, match="trials 2 and 3"):
        found(plan, load=Failing(9))
    again = told(plan)
    assert [trial.values for trial in again] == [trial.values for trial in first] * 2
    assert [trial.again for trial in again] == [2, 3, None, None]


def test_a_refused_trial_is_not_repeated(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {RATE: {"from": 1e-3, "to": 0.1}}, trials=3)
    refused = found(plan, load=Failing(9, UserError("it does not fit")))
    assert [trial.state for trial in refused] == ["refused"] * 3
    assert found(plan, load=Failing(9)) == refused


def trial(state: str, again: int | None = None) -> Trial:
    return Trial(number=0, state=state, value=None, values={}, again=again)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["complete", "refused", "pruned", "diverged"], 0),
        (["complete", "failed"], 1),
        (["failed", "failed"], 1),
        (["failed", "refused"], 1),
        (["refused", "diverged"], 1),
        (["refused", "refused"], 2),
    ],
)
def test_the_exit_code_says_if_a_trial_failed_or_was_refused(
    states: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        _end([trial(state) for state in states], "", "the same command continues the search")
    except SystemExit as ended:
        assert ended.code == code
        assert capsys.readouterr().err.count("\n") == 1
    else:
        assert code == 0
    _end([trial("failed", again=1), trial("complete")], "", "")


def test_without_validation_images_a_search_is_refused(tmp_path: Path) -> None:
    plan = read_search({"search": SPACE}, {**SMALL, "out": str(tmp_path / "search")})
    with pytest.raises(UserError, match=r"data\.validation_fraction=0\.1"):
        check_search(plan, strategies.load_for)
    assert not (tmp_path / "search").exists()


def test_settings_that_a_run_refuses_are_refused_before_any_trial(tmp_path: Path) -> None:
    """Such as secure sums with a strategy that must see each update."""
    secure: dict[str, Any] = {"privacy": {"secure_aggregation": True}, "strategy": "median"}
    plan = plan_of(tmp_path, **secure)
    with pytest.raises(UserError, match="secure_aggregation"):
        check_search(plan, strategies.load_for)


VALIDATION = {"data.validation_fraction": 0.2}
KEYED = {"encryption": {"adapt": True}, "finetuning": {"method": "lora+patch_embed"}}


@pytest.mark.parametrize(
    ("space", "more", "told"),
    [
        ({"evaluation.by": ["central", "clients"]}, {}, "evaluation.by cannot have the value clie"),
        (
            {"finetuning.patch_embedding": ["aggregate", "local"]},
            KEYED,
            "value local: with it each",
        ),
        ({"encryption.scope": ["shared", "client"]}, {}, "value client: with it each client"),
        ({"strategy": ["fedavg", "fedsa_lora"]}, {}, "value fedsa_lora: with it each client"),
        ({"clients": [2, 4]}, {"evaluation": {"by": "clients"}}, "clients cannot vary, because"),
        (
            {"who": {"a": {"data": {"alpha": 1}}, "b": {"data": {"partition": "iid"}}}},
            {"evaluation": {"by": "clients"}},
            "data.alpha cannot vary, because each client",
        ),
        ({"clients": [2, 4], "data.alpha": {"from": 0.1, "to": 1}}, {}, ""),
        ({"finetuning.method": ["head", "lora"], "evaluation.every": [1, 2]}, {}, ""),
    ],
)
def test_all_trials_are_measured_on_the_same_images(
    tmp_path: Path, space: Any, more: dict[str, Any], told: str
) -> None:
    given = {key: value for key, value in SMALL.items() if key != "clients"}
    tree = {"search": space, "data": {"validation_fraction": 0.25}, **more}
    plan = read_search(tree, {**given, "encryption.key_file": str(tmp_path / "owner.key")})
    if not told:
        check_search(plan, strategies.load_for)
        return
    with pytest.raises(UserError, match=told) as refused:
        check_search(plan, strategies.load_for)
    assert "\n" not in str(refused.value)


def test_a_trial_whose_choices_together_change_who_evaluates_is_refused() -> None:
    space = {
        "finetuning.method": ["lora", "lora+patch_embed"],
        "finetuning.patch_embedding": ["aggregate", "local"],
    }
    plan = read_search({"search": space, "finetuning": {"method": "lora"}}, VALIDATION)
    check_search(plan, strategies.load_for)
    values = {"finetuning.method": "lora", "finetuning.patch_embedding": "local"}
    check_trial(plan, values, strategies.load_for)
    with pytest.raises(UserError, match="each client evaluates on its own images"):
        check_trial(plan, values | {"finetuning.method": "lora+patch_embed"}, strategies.load_for)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rounds": 9}, "rounds"),
        ({"goal": "loss"}, "goal"),
        ({"prune": True}, "prune"),
        ({"search": {RATE: [0.1, 0.2]}}, "search"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = tmp_path / "search"
    searching.prepare_folder(folder, plan_of(tmp_path)).close()
    before = (folder / "search.yaml").read_text()
    other = plan_of(tmp_path, **change)
    with pytest.raises(UserError, match=told):
        searching.prepare_folder(folder, other)
    assert (folder / "search.yaml").read_text() == before


def test_a_second_process_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with (
        searching.prepare_folder(tmp_path / "search", plan),
        pytest.raises(UserError, match="another process runs this search"),
    ):
        searching.prepare_folder(tmp_path / "search", plan)
    with pytest.raises(UserError, match="not the folder of a search"):
        searching.prepare_folder(tmp_path, plan)
