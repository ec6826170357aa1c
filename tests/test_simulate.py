"""The command line: it teaches, and answers every mistake in one line with exit code 2."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import simulate
from fl_vitlora import config
from fl_vitlora.command_line.arguments import read_config
from fl_vitlora.command_line.parser import make_parser
from tests.waiting import WATCHDOG, wait_until

ROOT = Path(__file__).resolve().parent.parent

# what was typed, and what the answer must contain: what was wrong, and what was expected
MISTAKES = {
    "--clinets 20": ["--clinets", "did you mean --clients?"],
    "--clients": ["--clients", "expected one argument"],
    "twenty": ["twenty"],
    "--clients 0": ["clients", "[1, inf)", "0"],
    "--rounds 1.5": ["rounds", "whole number", "1.5"],
    "--fraction 2": ["fraction", "(0, 1]"],
    "--seed -1": ["seed", "[0, inf)"],
    "--method lorra": ["finetuning.method", "did you mean 'lora'?"],
    "--partition diriclet": ["data.partition", "did you mean 'dirichlet'?"],
    "--set training.epoch=2": ["training.epoch", "did you mean 'training.epochs'?"],
    "--set training.epochs=two": ["training.epochs", "whole number", "'two'"],
    "--set training": ["PATH=VALUE"],
    "--set encryption.steps=[xor]": ["encryption.steps", "pixel_shuffling"],
    "--set encryption.steps=etc": ["encryption.steps", "did you mean 'EtC'?", "PE"],
    "--set encryption.steps=[EtC,LE]": ["encryption.steps", "the scheme EtC alone"],
    "--set encryption.scope=clients": ["encryption.scope", "did you mean 'client'?"],
    "--set encryption.scope=client --set encryption.adapt=true": [
        "choose finetuning.patch_embedding aligned or local"
    ],
    "--set encryption.scope=image --set encryption.adapt=true": ["choose scope shared"],
    "--set finetuning.patch_embedding=local --set evaluation.by=central": ["by clients"],
    "--rotate-key": ["--rotate-key", "at least one argument"],
    "--rotate-key used --seeds 0 1": ["--rotate-key", "--seeds"],
    "--rotate-key nowhere": ["nowhere", "expected shards", "client-00000.safetensors"],
    "--storage-keys used": ["--storage-keys", "--out FOLDER"],
    "--storage-keys nowhere --out keys": ["nowhere", "expected shards", "client-00000.safetensors"],
    "--storage-keys used --seeds 0 1": ["--storage-keys", "--seeds"],
    "--new-identity 3": ["--new-identity", "--out FILE"],
    "--new-identity 3 --resume used": ["--new-identity", "--resume"],
    "--set privacy.client_keys=a.pub": ["privacy.client_keys", "privacy.secure_aggregation=true"],
    "--set privacy.reveal_seeds=false": ["privacy.reveal_seeds", "remove privacy.reveal_seeds"],
    "--set encryption.at_rest=rings": ["encryption.at_rest", "did you mean 'ring'?"],
    "--config missing.yaml": ["missing.yaml", "no such file"],
    "--strategy fedavgg": ["strategy", "did you mean 'fedavg'?"],
    "--strategy fedprox --set strategy.nu=1": ["strategy.nu", "did you mean 'strategy.mu'?"],
    "--strategy flwr.serverapp.strategy:FedAdm": ["did you mean 'FedAdam'?"],
    "--strategy flwr.serverapp.strategy:FedAvg --set strategy.min_train_nodes=50": [
        "strategy.min_train_nodes 50",
        "20 clients",
    ],
    "--min-clients 5 --fraction 0.2": ["min_clients 5", "only 4 clients", "--fraction"],
    "--min-clients 0": ["min_clients", "[1, inf)"],
    "--check-strategy fedavgg": ["strategy", "did you mean 'fedavg'?"],
    "--check-strategy fedprox --set strategy.nu=1": ["did you mean 'strategy.mu'?"],
    "--check-strategy flwr.server.strategy:FedAvg": ["older", "flwr.serverapp.strategy:FedAvg"],
    "--strategy flwr.server.strategy:FedYogi": ["older", "flwr.serverapp.strategy:FedYogi"],
    "--check-strategy FedAdam": ["did you mean 'flwr.serverapp.strategy:FedAdam'?"],
    "--check-strategy fedprox --strategy fedavg": [
        "already names the strategy",
        "strategy.name=fedavg",
    ],
    "--check-strategy fedprox --set strategy=fedavg": [
        "already names the strategy",
        "strategy=fedavg",
    ],
    "--check-strategy tests.test_testing:Needy": ["strategy.m needs", "--set strategy.m=VALUE"],
    "--check-strategy fedavg --compare head": [
        "--check-strategy",
        "runs nothing else",
        "--compare",
    ],
    "--check-strategy fedavg --seeds 0 1": ["--check-strategy", "--seeds"],
    "--check-strategy fedavg --rotate-key used": ["--check-strategy", "--rotate-key"],
    "--strategy fedprox --set strategy.mu=-1": ["strategy.mu", "[0, inf)"],
    "--strategy flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping": [
        "needs a value",
        "--set strategy.noise_multiplier=VALUE",
    ],
    "--strategy flwr.serverapp.strategy:QFedAvg": ["--set strategy.client_learning_rate=VALUE"],
    "--clients 2000": ["2000 clients", "1437 training images", "at most 718"],
    "--dataset missing/folder": ["missing/folder", "--dataset FOLDER"],
    "--partition pathological --set data.classes_per_client=11": [
        "11",
        "at most the number of classes, 10",
    ],
    "--partition pathological --clients 4": ["at most 8 of the 10 classes"],
    "--out used": ["used", "--out FOLDER"],
    "--compare": ["--compare", "at least one argument"],
    "--compare head lorra": ["finetuning.method", "did you mean 'lora'?"],
    "--compare finetuning.metod=head": ["did you mean 'finetuning.method'?"],  # codespell:ignore
    "--compare head lora --method full": ["finetuning.method", "a flag", "axis"],
    "--compare clients=3,5 --clients 4": ["clients", "a flag", "axis"],
    "--compare clients=[3": ["--compare", "not a YAML value"],
    "--compare head --seeds one": ["seed", "whole number", "'one'"],
    "--compare head --seeds 0 1 --seed 2": ["seed", "seeds"],
    "--compare head --out used/result.json": ["not a folder of a comparison", "--out FOLDER"],
    "--compare fedavgg fedprox": ["did you mean 'fedavg'?"],
    "--compare head iid": ["--compare data.partition=iid"],
    "--compare head --seeds 4-0": ["seeds: 4-0", "0-4"],
    "--compare head --seeds 0-99999999999": ["seeds: 0-99999999999", "10000"],
    "--compare lr=1,2": ["did you mean 'training.learning_rate'?"],
    "--seed 0-4": ["--seeds 0-4"],
    "--seed 0,1": ["--seeds 0,1"],
    "--seed 0 1": ["unrecognized arguments: 1", "--seeds"],
    "--device gpu": ["did you mean 'cuda'?"],
    "--partition non-iid": ["did you mean 'dirichlet'?"],
    "--lr 1": ["did you mean --set training.learning_rate=VALUE?"],
    "--batch-size=8": ["did you mean --set training.batch_size=VALUE?"],
    "--num-clients 3": ["did you mean --clients?"],
    "--alpha 1": ["--set data.alpha=VALUE or --set finetuning.alpha=VALUE"],
    "--gpu": ["did you mean --device?"],
    "--continue runs/1": ["did you mean --resume?"],
    "--set lr=1e-3": ["did you mean 'training.learning_rate'?"],
    "--set alpha=1": ["'data.alpha' or 'finetuning.alpha'"],
    "--set training.rank=3": ["did you mean 'finetuning.rank'?"],
    "--set learnig_rate=3": ["did you mean 'training.learning_rate'?"],
}


SENT = "sent"  # a file that is there when a signal was sent
HALTING = f"""
import io, pathlib, sys, time

class Halting(io.TextIOWrapper):
    def write(self, text):
        written = super().write(text)
        if text.startswith(LINE):
            self.flush()
            while not pathlib.Path({SENT!r}).exists():
                time.sleep(0.01)
        return written

sys.stdout = Halting(sys.stdout.buffer, line_buffering=True)
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it but a run folder that is in use."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "result.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer_to(typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        simulate.main(typed.split())
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    typed: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answer_to(typed, capsys)
    assert answer.startswith("simulate.py: ")
    assert answer.count("\n") == 1
    assert "Traceback" not in answer
    assert [part for part in MISTAKES[typed] if part not in answer] == []
    assert {path.name for path in elsewhere.iterdir()} == {"used"}  # nothing half-written


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_pretended(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no GPU here; use --device cpu" in answer_to("--device cuda", capsys)


def test_a_model_that_bypasses_the_adapters_is_refused(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "--model beitv2_base_patch16_224 --set model.weights=random --device cpu"
    answer = answer_to(typed, capsys)
    assert "would ignore LoRA" in answer
    assert "--method full" in answer
    assert {path.name for path in elsewhere.iterdir()} == {"used"}


@pytest.mark.parametrize(("typed", "code"), [("--version", 0), ("--clinets 20", 2)])
def test_an_output_without_a_reader_changes_no_exit_code(typed: str, code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "simulate.py", *typed.split()],
        cwd=ROOT,
        stdout=writer,
        stderr=writer,
        check=False,
        timeout=WATCHDOG,
    )
    os.close(writer)
    assert done.returncode == code


def test_a_file_does_not_take_the_place_of_an_output_that_is_closed() -> None:
    show = (
        "import os; os.close(1); os.close(0)\n"
        "from fl_vitlora.reporting.output import open_standard_files; open_standard_files()\n"
        "raise SystemExit(os.open('simulate.py', os.O_RDONLY))"
    )
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, check=False, timeout=WATCHDOG)
    assert done.returncode > 2


def test_flags_and_settings_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("clients: 7\nrounds: 3\nstrategy: fedprox\n")
    typed = f"--config {file} --rounds 4 --set training.learning_rate=1e-3 --set strategy.mu=1"
    read = read_config(make_parser().parse_args(typed.split()))
    assert (read.clients, read.rounds, read.training.learning_rate) == (7, 4, 0.001)
    assert (read.strategy.name, read.strategy.options) == ("fedprox", {"mu": 1})


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "trust").glob("*.yaml")]),
    ids=lambda p: p.stem,
)
def test_committed_experiments_are_valid_and_begin_with_their_command(path: Path) -> None:
    config.load(str(path))
    first = path.read_text().splitlines()[0]
    assert first == f"# python simulate.py --config {path.relative_to(ROOT).as_posix()}"


def test_a_strategy_is_held_to_every_rule(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate.main(["--check-strategy", "fedprox", "--set", "strategy.mu=0.5"])
    first, declared, first_round, mu, *rules, last = capsys.readouterr().out.splitlines()
    assert first == "FedProx(mu=0.5)"
    assert declared.startswith("needs LoRA: no, ranks may differ: no, sums suffice: yes, ")
    assert first_round == "round 1 freezes 0 of 12 tensors; the class overrides: penalty, aggregate"
    assert mu == "mu = 0.5  [0, inf)  " + mu.rpartition("  ")[2]
    assert all(rule.startswith("passed  ") for rule in rules)
    assert last == f"{len(rules)} rules, 0 failed"
    assert {path.name for path in elsewhere.iterdir()} == {"used"}


def test_a_strategy_of_flower_is_held_to_what_a_run_needs_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate.main(["--check-strategy", "flwr.serverapp.strategy:FedAdam"])
    name, replaced, called, *rules, last = capsys.readouterr().out.splitlines()
    assert name == "flwr.serverapp.strategy:FedAdam"
    assert replaced == "a strategy of Flower; replaces: nothing"
    assert called == "every public method is called"
    assert all(rule.startswith("passed  ") for rule in rules)
    assert last == f"{len(rules)} rules, 0 failed"


def test_every_broken_rule_is_told_with_what_broke_it(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--check-strategy", "tests.test_testing:Wrong", "--set"]
    with pytest.raises(SystemExit) as ended:
        simulate.main([*typed, "strategy.fault=divides by none"])
    assert ended.value.code == 1
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "Wrong(fault='divides by none')"
    at = lines.index("failed  returns finite tensors of the right names, shapes and types")
    assert lines[at + 1].strip().startswith("strategy Wrong: round 1: the new model has NaN")
    assert lines[at - 1] == "passed  plans only what a client can do, the same in every call"
    assert lines[at + 2 :] == []
    assert last == "3 rules, 1 failed; the other 12 rules were not tested"


def test_what_breaks_several_rules_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--check-strategy", "tests.test_testing:Wrong", "--set"]
    with pytest.raises(SystemExit):
        simulate.main([*typed, "strategy.fault=needs three"])
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("failed  works with one client")
    assert "aggregate fails with 1 of 4 clients: IndexError" in lines[at + 1]
    assert (
        lines[at + 2]
        == "failed  works with different clients in every round (the same problem as above)"
    )


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("preparing", signal.SIGINT),
        pytest.param("starting workers", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("round 1/", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_interruption_ends_a_run_soon_and_says_how_to_go_on(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    goes_on = r"python simulate\.py --resume runs/\S+ continues the run"
    told = {
        "preparing": r"simulate\.py: interrupted; no run was started",
        "starting workers": rf"simulate\.py: interrupted; {goes_on}",
        "round 1/": rf"simulate\.py: ended after round \d+ of 500; {goes_on}",
    }
    with started("--clients 4 --rounds 500", tmp_path, halts_at=moment) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith(moment):
            assert running.poll() is None
        os.killpg(running.pid, number)  # Ray's processes are told too
        (tmp_path / SENT).touch()
        _, answer = running.communicate(timeout=WATCHDOG)
    assert running.returncode == 130, answer
    (line,) = answer.splitlines()
    assert re.fullmatch(told[moment], line), line


@contextlib.contextmanager
def started(typed: str, place: Path, halts_at: str = "") -> Iterator[subprocess.Popen[str]]:
    """Starts the program as a terminal does; what is left of it ends with the block.

    Args:
        typed: The arguments of the program.
        place: The folder in which the program runs.
        halts_at: The beginning of a line after which the terminal takes nothing more, as after
            Ctrl-S, until `place` has the file `SENT`; empty for no such line.
    """
    program = (
        f"{HALTING if halts_at else ''}\n"
        "import signal, simulate\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"simulate.main({typed.split()})"
    ).replace("LINE", repr(halts_at))
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.fixture
def begun(elsewhere: Path) -> Path:
    """A run that was broken off before its first round."""
    place = elsewhere / "begun"
    place.mkdir()
    experiment = config.load(None, {"clients": 4, "strategy": "fedprox", "strategy.mu": 0.1})
    (place / "config.yaml").write_text(config.to_yaml(experiment))
    return place


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "--rounds 30",
            ["rounds is 20 in this run, not 30", "you may change: encryption.key_file"],
        ),
        ("--set strategy.mu=0.2", ["strategy.mu is 0.1 in this run, not 0.2"]),
        ("--strategy fedavg", ["strategy.name is fedprox in this run, not fedavg"]),
        ("--seeds 0 1", ["--resume continues one run", "--seeds"]),
        ("--rotate-key begun", ["--rotate-key runs nothing else", "--resume"]),
        ("--clinets 3", ["did you mean --clients?"]),
    ],
)
def test_a_run_does_not_go_on_as_another_one(
    flags: str, expected: list[str], begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answer_to(f"--resume begun {flags}", capsys)
    assert all(part in answer for part in expected), answer
    assert [path.name for path in begun.iterdir()] == ["config.yaml"]


def test_there_must_be_a_run_to_go_on_with(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere contains no run; expected a run folder, which has a config.yaml" in answer_to(
        "--resume nowhere", capsys
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--rounds 30", ["rounds is 20 in this run, not 30"]),
        (
            "--set strategy.mu=0.2 --seed 3",
            ["strategy.mu is 0.1 in this run, not 0.2", "seed is 0 in this run, not 3"],
        ),
    ],
)
def test_a_run_at_its_end_is_not_changed(
    flags: str, told: list[str], begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun / "result.json").write_text("{}")
    answer = answer_to(f"--resume begun {flags}", capsys)
    assert "this run is finished with other settings" in answer
    assert all(part in answer for part in told)


@pytest.mark.parametrize("flag", ["--out", "--set model.weights", "--set encryption.key_file"])
def test_a_home_folder_is_written_out_and_a_variable_is_not_taken_for_a_name(
    flag: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    typed = f"{flag}=~/place".split()
    read = read_config(make_parser().parse_args(typed))
    assert f"'{elsewhere}/place'" in repr(read)
    assert "~" not in repr(read)
    assert "begins with a variable" in answer_to(f"{flag}=$HOME/place", capsys)
    nobody = "~nobody-of-this-name/place"
    assert f"home folder in '{nobody}' is unknown" in answer_to(f"{flag}={nobody}", capsys)


@pytest.mark.parametrize("text", ["~/place.yaml", "place.yaml"])
def test_a_file_in_a_home_folder_may_name_others_there(
    text: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    settings = "data: {name: ~/images}\nmodel: {weights: ~/w}\nout: ~/o\n"
    (elsewhere / "place.yaml").write_text(f"{settings}encryption: {{key_file: ~/k}}\n")
    read = config.load(text)
    assert (read.data.name, read.model.weights) == (f"{elsewhere}/images", f"{elsewhere}/w")
    assert (read.out, read.encryption.key_file) == (f"{elsewhere}/o", f"{elsewhere}/k")
    assert make_parser().parse_args(["--resume=~/o"]).resume == elsewhere / "o"


def test_a_run_at_its_end_is_shown(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (begun / "result.json").write_text("[1]")
    assert "result.json cannot be read: expected a JSON object" in answer_to(
        "--resume begun", capsys
    )


@pytest.mark.slow
def test_a_comparison_that_is_interrupted_ends_after_a_round_and_says_how_to_go_on(
    tmp_path: Path,
) -> None:
    typed = "--compare rounds=1,500 --method head --clients 3 --set data.limit=80 --out grid"
    rounds = tmp_path / "grid" / "500-seed0" / "rounds.jsonl"
    with started(typed, tmp_path) as running:
        wait_until(
            lambda: rounds.exists() and rounds.stat().st_size > 0,
            goes_on=lambda: running.poll() is None,
        )
        running.send_signal(signal.SIGTERM)
        _, answer = running.communicate(timeout=WATCHDOG)
    assert running.returncode == 130, answer
    found = re.fullmatch(
        r"simulate\.py: ended after round (\d+) of 500, run 2 of 2; "
        r"the same command with --out grid continues the comparison\n",
        answer,
    )
    assert found, answer
    assert len(rounds.read_text().splitlines()) == int(found[1])
    assert len((tmp_path / "grid" / "runs.csv").read_text().splitlines()) == 1 + 1


@pytest.mark.slow
def test_a_comparison_of_which_nothing_can_run_ends_like_a_mistake(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "--compare head lora --partition pathological --clients 4 --out grid"
    assert "nothing ran" in answer_to(typed, capsys)
    table = (elsewhere / "grid" / "table.md").read_text()
    assert table.count("refused: ") == 2


def test_an_adaptation_that_does_not_exist_is_refused_before_anything_is_written(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "--model vit_relpos_small_patch16_224 --set model.weights=random --device cpu"
    answer = answer_to(f"{typed} --set encryption.adapt=true", capsys)
    assert "block scrambling has no key adaptation" in answer
    assert {path.name for path in elsewhere.iterdir()} == {"used", "keys"}
