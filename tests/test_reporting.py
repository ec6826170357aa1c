"""What a run leaves and shows: folders that are never overwritten, pictures, lines and a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fl_vitlora.config import load
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.stage import Experiment, prepare_stage
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.privacy.noise import FROM_SEED
from fl_vitlora.reporting.console import RunDisplay
from fl_vitlora.reporting.environment import PACKAGES
from fl_vitlora.reporting.plots import plot_accuracy, plot_labels, plot_traffic
from fl_vitlora.reporting.result_table import print_result
from fl_vitlora.reporting.run_folder import (
    RunFolder,
    begun_in,
    default_path,
    find_run,
    located,
    with_ring_of,
)
from fl_vitlora.storage.files import write_atomically
from strategies.fedavg import FedAvg

ROOT = Path(__file__).resolve().parent.parent
LINE = {
    "round": 1,
    "accuracy": 0.5,
    "loss": 1.25,
    "uplink_bytes": 1000,
    "downlink_bytes": 500,
    "failures": [{"client": 3, "reason": "no reply"}],
    "moved": True,
    "seconds": 2.0,
}
SHOWS = """
import sys, threading
from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay
from fl_vitlora.reporting.result_table import print_result
from fl_vitlora.reporting.output import outlive_readers
line, result = {line!r}, {result!r}
outlive_readers()
with RunDisplay(20) as display:
    display.announce("preparing")
    sys.stdin.readline()  # until the reader is gone
    display.show_round(line)
    other = threading.Thread(target=display.show_round, args=(line,))
    other.start()
    other.join()
with ComparisonDisplay(2) as display:
    display.show_run("head")
print_result(result, "runs/one")
print("to its end", file=sys.stderr)
"""
RESULT = {
    "accuracy": 0.9611,
    "accuracy_by_view": {"right_key": 0.9611},
    "clients": 20,
    "rounds": 20,
    "strategy": "fedavg",
    "method": "lora",
    "trainable_parameters": 10,
    "total_parameters": 1000,
    "idle_rounds": 0,
    "changes": [],
    "rounds_planned": 20,
    "stopped": None,
    "target": None,
    "secure_aggregation": None,
    "privacy": None,
    "failures": {"updates": 0, "clients": {}, "reasons": {}},
    "encryption": {
        "steps": [],
        "scope": "shared",
        "key_id": None,
        "adapted": False,
        "patch_embedding": "aggregate",
    },
    "communication": {
        "uplink_bytes": 1_000,
        "downlink_bytes": 2_000_000,
        "full_fine_tuning_bytes": 3_000_000_000,
        "saving": 1499.25,
        "saving_with_flower": 250.04,
        "transfer_seconds": 4.5,
        "full_fine_tuning_transfer_seconds": 7322.0,
    },
    "seconds": {"setup": 1.0, "training": 2.0, "total": 3.5},
}


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    config = load(None, {"out": str(tmp_path / "run")})
    RunFolder.create(config)
    with pytest.raises(UserError, match="in use"):
        RunFolder.create(config)


def test_a_run_folder_tells_what_it_was_made_with(tmp_path: Path) -> None:
    folder = RunFolder.create(load(None, {"out": str(tmp_path / "run")}))
    facts = json.loads((folder.path / "environment.json").read_text())
    assert set(facts["packages"]) == set(PACKAGES)


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was begun in one working directory, with a key ring there; now it is another."""
    for name in ("start", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    open_or_create_ring(Path("keys/owner.key"))
    RunFolder.create(load(None, {"out": str(tmp_path / "run")})).release()
    monkeypatch.chdir(tmp_path / "other")
    return tmp_path


def test_a_key_ring_is_looked_for_where_the_run_was_begun(moved: Path) -> None:
    begun, _ = find_run(moved / "run")
    asked = located(begun, begun, moved / "run")
    ring = str(moved / "start" / "keys" / "owner.key")
    assert begun_in(moved / "run") == moved / "start"
    assert asked.encryption.key_file == ring
    assert (asked.data.name, asked.model.weights) == ("digits", "pretrained")
    assert with_ring_of(begun, [begun_in(moved / "run")]).encryption.key_file == ring


def test_a_key_ring_that_is_named_anew_is_taken(moved: Path) -> None:
    begun, _ = find_run(moved / "run")
    named = replace(begun, encryption=replace(begun.encryption, key_file="mine.key"))
    assert located(named, begun, moved / "run").encryption.key_file == "mine.key"


def test_a_run_that_goes_on_never_makes_a_key_ring(moved: Path) -> None:
    (moved / "start" / "keys" / "owner.key").unlink()
    begun, _ = find_run(moved / "run")
    asked = located(begun, begun, moved / "run")
    experiment = Experiment(written=asked, config=asked, strategy=FedAvg(), watch=Watch())
    with pytest.raises(
        UserError, match=r"owner\.key: this file does not exist; a run can continue only with"
    ):
        prepare_stage(experiment, "cpu", again=True)
    assert not list(moved.rglob("*.key"))


@pytest.mark.parametrize("name", ["..", "/", "../../etc", "a/..", "~", "a/b/c.d", "x" * 300])
def test_a_folder_that_is_named_for_a_user_lies_where_all_do(name: str) -> None:
    config = load(None, {})
    path = default_path(replace(config, data=replace(config.data, name=name)))
    assert path.resolve().parent == Path("runs").resolve()
    assert len(path.name) < 256


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_pictures_are_drawn_and_not_empty(tmp_path: Path) -> None:
    plot_accuracy(tmp_path, [0.1, None, 0.9], [1000, 2000, 3000], [0.5, 1.0, 1.5], "validation")
    sizes = {"uplink_bytes": 50, "downlink_bytes": 60, "payload_by_group": {"head": 70}}
    plot_traffic(tmp_path, [sizes, {**sizes, "payload_by_group": {"head": 50, "lora_A": 20}}])
    plot_labels(tmp_path, np.array([[5, 0], [1, 3], [0, 2]]), ("cat", "dog"))
    names = [
        "accuracy_over_megabytes",
        "accuracy_over_rounds",
        "accuracy_over_transfer",
        "label_distribution",
        "megabytes_over_rounds",
    ]
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == names
    for path in tmp_path.glob("*.png"):
        assert len(np.unique(np.asarray(Image.open(path)))) > 10


def test_each_round_is_a_line_where_there_is_no_terminal() -> None:
    console = Console(record=True, width=120, force_terminal=False)
    with RunDisplay(20, console) as display:
        display.announce("starting workers")
        display.show_round(LINE)
        display.show_round({**LINE, "round": 2, "failures": []})
        display.show_round({**LINE, "round": 3, "failures": [], "moved": False})
    first, second, third, fourth = console.export_text().splitlines()
    assert first == "starting workers"
    assert second == "round 1/20  accuracy 50.0 %  loss 1.250  1.5 kB sent  1 failed  2.0 s"
    assert third == "round 2/20  accuracy 50.0 %  loss 1.250  3.0 kB sent  2.0 s"
    assert fourth.endswith("4.5 kB sent  model unchanged  2.0 s")


def test_a_run_outlives_the_reader_of_its_lines() -> None:
    showing = subprocess.Popen(
        [sys.executable, "-c", SHOWS.format(line=LINE, result=RESULT)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert showing.stdout is not None
    assert showing.stdout.readline() == "preparing\n"
    showing.stdout.close()
    _, errors = showing.communicate("gone\n", timeout=300)
    assert (showing.returncode, errors) == (0, "to its end\n")


def test_a_run_outlives_its_terminal() -> None:
    reader, terminal = os.openpty()
    showing = subprocess.Popen(
        [sys.executable, "-c", SHOWS.format(line=LINE, result=RESULT)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.read(reader, 1)
    os.close(terminal)
    os.close(reader)
    _, errors = showing.communicate("gone\n", timeout=300)
    assert (showing.returncode, errors) == (0, "to its end\n")


def test_a_terminal_sees_a_bar_with_the_time_left() -> None:
    console = Console(record=True, width=120, force_terminal=True)
    with RunDisplay(2, console) as display:
        display.show_round(LINE)
    shown = console.export_text()
    assert "training" in shown
    assert "1/2" in shown
    assert "accuracy 50.0 %" in shown


def message(kind: str = "train", *, reply: bool = False) -> Any:
    """What is seen of a Flower message."""
    metadata = SimpleNamespace(message_type=kind, reply_to_message_id="1" if reply else "")
    return SimpleNamespace(metadata=metadata)


def test_the_bar_moves_during_set_up_and_within_a_round_and_never_back() -> None:
    console = Console(record=True, width=80, force_terminal=True)
    with RunDisplay(2, console) as display:
        (task,) = display._progress.tasks
        totals = [task.total]  # without one, the bar moves to and fro
        for one in [message(), message(), message("query"), message("evaluate", reply=True)]:
            display.show_message(one)
        assert [*totals, task.total, task.completed] == [None, 2, 0]
        display.show_message(message(reply=True))
        assert task.completed == 0.5
        display.show_message(message(reply=True))
        for one in [message(), message()]:  # the next round begins before this one is shown
            display.show_message(one)
        assert task.completed == 1
        display.show_round({**LINE, "failures": []})
        display.show_message(message(reply=True))
        assert task.completed == 1.5
    assert len("training" + console.export_text().rpartition("training")[2].rstrip()) <= 80


def test_a_long_round_is_told_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=80, force_terminal=False)
    with RunDisplay(2, console) as display:
        display.show_message(message())
        display.show_message(message())
        monkeypatch.setattr("fl_vitlora.reporting.console.SECONDS_OF_SILENCE", -1.0)
        display.show_message(message(reply=True))
    assert console.export_text() == "round 1/2  1 of 2 clients have answered\n"


def test_the_table_shows_accuracy_bytes_saving_and_time() -> None:
    console = Console(record=True, width=120)
    print_result(RESULT, "runs/one", console)
    shown = console.export_text()
    for part in ("96.11 %", "none: plain images", "1.0 kB", "2.0 MB", "3.0 GB", "1499.2x", "3.5 s"):
        assert part in shown
    assert "1499.2x fewer bytes; 250.0x with Flower's own traffic" in shown
    assert "4.5 s; full fine-tuning 2 h 2 min" in shown
    assert "10 of 1,000" in shown
    assert "(1.00 %)" in shown
    assert "wrong key" not in shown
    assert "privacy" not in shown
    assert "idle" not in shown


def test_the_table_shows_what_was_given_away_and_rounds_without_effect() -> None:
    console = Console(record=True, width=120)
    spent = {"epsilon": 3.14159, "delta": 1e-5, "releases": 18, "accountant": "rdp"}
    print_result({**RESULT, "privacy": spent, "idle_rounds": 2}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert not any(line.startswith("noise from") for line in lines)  # older results do not say
    told = "privacy epsilon 3.14 at delta 1e-05 for a client's updates, after 18 releases (rdp)"
    assert told in lines
    assert "idle rounds 2 of 20: the model did not change" in lines


def test_the_table_says_where_the_noise_came_from() -> None:
    console = Console(record=True, width=120)
    spent = {"epsilon": 3.1, "delta": 1e-5, "releases": 18, "accountant": "rdp"}
    print_result({**RESULT, "privacy": {**spent, "noise_from": FROM_SEED}}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    told = "noise from seed of the run (config.yaml); anyone who has the seed can remove the noise"
    assert told in lines


def test_the_table_names_who_failed_most_often_and_why() -> None:
    console = Console(record=True, width=120)
    clients = {"1": 1, "4": 20, "7": 2, "8": 3, "11": 1}
    reasons = {client: f"cause [{client}]" for client in clients}
    failures = {"updates": 27, "clients": clients, "reasons": reasons}
    print_result({**RESULT, "failures": failures}, "runs/one", console)
    print_result(RESULT, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    begin = lines.index("failures client 4, 20 times: cause [4]")
    assert lines[begin + 1 : begin + 4] == [
        "client 8, 3 times: cause [8]",
        "client 7, 2 times: cause [7]",
        "and 2 more; see runs/one/failures",
    ]
    assert sum("failures" in line for line in lines) == 2  # nothing of the run without any


def test_the_table_names_who_failed_once() -> None:
    console = Console(record=True, width=120)
    failures = {"updates": 1, "clients": {"2": 1}, "reasons": {"2": "out of memory"}}
    print_result({**RESULT, "failures": failures}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "failures client 2, once: out of memory" in lines
    assert not any("more" in line for line in lines)


def test_what_is_told_of_a_failure_has_a_file(tmp_path: Path) -> None:
    folder = RunFolder.create(load(None, {"out": str(tmp_path / "run")}))
    assert not folder.failures.exists()
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no images'
    folder.write_failure(3, 7, trace)
    (path,) = folder.failures.iterdir()
    assert path.name == "round-00003-client-00007.txt"
    assert path.read_text() == f"{trace}\n"


def test_the_table_shows_what_a_target_took_and_what_a_budget_allowed() -> None:
    console = Console(record=True, width=120)
    target = {"accuracy": 0.95, "reached": True, "round": 7, "bytes": 650_000}
    stopped = {"stopped": "budget", "rounds": 9}
    print_result({**RESULT, "target": target, **stopped}, "runs/one", console)
    print_result({**RESULT, "target": {**target, "reached": False}}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "95 % accuracy in round 7, after 650.0 kB" in lines
    assert "95 % accuracy not reached" in lines
    assert "stopped the budget allows 9 of 20 rounds" in lines
    print_result({**RESULT, "target": {**target, "measured_on": "validation"}}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "95 % validation accuracy in round 7, after 650.0 kB" in lines
    print_result({**RESULT, "stopped": "strategy", "rounds": 9}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "stopped the strategy ended the run after 9 of 20 rounds" in lines


def test_the_table_shows_what_was_chosen_by_validation_and_what_that_is_worth() -> None:
    console = Console(record=True, width=200)
    validation = {"accuracy": 0.95, "loss": 0.1, "images": 1437}
    best = {"round": 12, "accuracy": 0.97, "test_accuracy": 0.9722}
    result = {**RESULT, "validation": validation, "best": best, "stopped": "patience"}
    print_result(result, "runs/one", console)
    print_result({**result, "best": {**best, "test_accuracy": None}}, "runs/one", console)
    print_result({**result, "best": None}, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "test accuracy 96.11 %" in lines
    assert lines.count("validation accuracy 95.00 % (1,437 images)") == 3
    assert sum(line.startswith("best model") for line in lines) == 2
    chosen = "best model of round 12, chosen by its validation accuracy, 97.00 %; test accuracy"
    assert f"{chosen} 97.22 %" in lines
    assert f"{chosen} unknown" in lines
    assert any("stopped the validation accuracy did not rise" in line for line in lines)


def test_a_round_without_an_evaluation_is_a_line_without_an_accuracy() -> None:
    console = Console(record=True, width=200, force_terminal=False)
    unmeasured = {**LINE, "accuracy": None, "loss": None, "failures": []}
    with RunDisplay(20, console) as display:
        display.show_round(unmeasured)
        display.show_round({**LINE, "round": 2, "measured_on": "validation", "failures": []})
    first, second = console.export_text().splitlines()
    assert first == "round 1/20  not evaluated  1.5 kB sent  2.0 s"
    assert second.startswith("round 2/20  validation accuracy 50.0 %  loss 1.250  3.0 kB sent")


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (10, "key falls to 10 ciphertexts (docs/trust.md)"),
        ("not measured", "key falls to not measured (docs/trust.md)"),
        (None, None),
    ],
)
def test_the_table_shows_from_how_many_ciphertexts_the_key_falls(
    found: int | str | None, line: str | None
) -> None:
    console = Console(record=True, width=120)
    encryption = {**RESULT["encryption"], "falls_to_ciphertexts": found}  # type: ignore[dict-item]
    print_result({**RESULT, "encryption": encryption}, "runs/one", console)
    lines = [" ".join(shown.split()) for shown in console.export_text().splitlines()]
    assert [shown for shown in lines if "falls to" in shown] == ([line] if line else [])


def test_the_table_shows_whose_key_it_was_and_what_another_is_worth() -> None:
    console = Console(record=True, width=120)
    encryption = {
        "steps": ["pixel_shuffling"],
        "scope": "client",
        "key_id": "0123456789abcdef",
        "adapted": True,
        "patch_embedding": "aligned",
    }
    views = {"right_key": 0.9611, "wrong_key": 0.1, "no_key": 0.125}
    result = {**RESULT, "encryption": encryption, "accuracy_by_view": views}
    print_result(result, "runs/one", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[:5] == [
        "test accuracy 96.11 %",
        "under a wrong key 10.00 %",
        "on plain images 12.50 %",
        "encryption pixel_shuffling",
        "key 0123456789abcdef, scope client, model adapted, patch embedding aligned",
    ]
