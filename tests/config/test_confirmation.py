"""Files of other people: nothing of them is run as code, and nothing is called out to."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import simulate
import strategies
from fl_vitlora import config
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.command_line.arguments import confirmed_by, read_config
from fl_vitlora.command_line.parser import make_parser
from fl_vitlora.config.confirmation import check_confirmed, is_known
from fl_vitlora.data import sources
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.ray_environment import imports_from, job_with_own_path
from fl_vitlora.flower.strategies.aggregators import client_half
from fl_vitlora.models.reading import open_reader

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = "203.0.113.7:6379"
TRACE = "ran"  # a file that exists once any module of the folder was imported
MODULES = (
    "mine",
    "strategies/__init__",
    "strategies/fedavg",
    "flwr/__init__",
    "fl_vitlora/__init__",
    "simulate",
    "sitecustomize",
    "usercustomize",
    "conftest",
    "torch",
    "yaml",
    "json",
    "multiprocessing/__init__",
)

STRATEGIES: Mapping[str, Any] = {
    "a module beside the file": "mine:Mine",
    "a module of the system": "os:PathLike",
    "relative": ".mine:Mine",
    "up": "..mine:Mine",
    "a path": "./mine:Mine",
    "a path in the project": "strategies/../mine:Mine",
    "dots in the project": "strategies..mine:Mine",
    "like Flower's": "flwr_mine:Mine",
    "with options": {"name": "mine:Mine", "rate": 1},
    "in a wrapper": {
        "name": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "noise_multiplier": 1,
        "clipping_norm": 1,
        "num_sampled_clients": 20,
        "strategy": "mine:Mine",
    },
    "in a wrapper, with options": {
        "name": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"name": "mine:Mine", "rate": 1},
    },
    "in two wrappers": {
        "name": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"name": "flwr.serverapp.strategy:FedAvg", "strategy": {"name": "mine:Mine"}},
    },
    "a file": "mine.py",
    "a file by its path": "../mine.py",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder of somebody else, as the working directory, that writes when it is imported."""
    folder, trace = tmp_path / "run", tmp_path / TRACE
    for module in MODULES:
        path = folder / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(trace)!r}, 'a').write(__name__)\n")
    monkeypatch.chdir(folder)

    def refuse(*given: object, **_: object) -> None:
        raise AssertionError(f"somebody was called: {given}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("ray.init", refuse)
    yield folder
    assert not trace.exists(), trace.read_text()


def answer(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        simulate.main(argv)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert "Traceback" not in said
    return said


def write(folder: Path, **settings: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("way", ["--resume .", "--config config.yaml"])
@pytest.mark.parametrize("case", STRATEGIES)
def test_no_file_brings_a_strategy_that_nobody_typed(
    case: str, way: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, strategy=STRATEGIES[case])
    said = answer(way.split(), capsys)
    assert "--trust-strategy" in said or "unknown strategy" in said


@pytest.mark.parametrize("case", STRATEGIES)
def test_no_comparison_brings_a_strategy_that_nobody_typed(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = STRATEGIES[case]
    settings = {"strategy": chosen} if isinstance(chosen, str) else None
    nested = settings or {f"strategy.{path}": value for path, value in chosen.items()}
    write(folder, compare={"what": {"plain": {"strategy.name": "fedavg"}, "other": nested}})
    if ":" in str(chosen):  # names without a colon are looked for in strategies/ alone, run by run
        assert "--trust-strategy" in answer(["--config", "config.yaml"], capsys)


@pytest.mark.parametrize("way", ["--resume .", "--config config.yaml"])
def test_no_file_brings_a_ray_cluster_that_nobody_typed(
    way: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, engine={"ray_address": CLUSTER, "workers": 2})
    assert f"--ray-address {CLUSTER}" in answer(way.split(), capsys)
    write(folder, compare={"engine.ray_address": [CLUSTER]}, engine={"workers": 2})
    if "--config" in way:
        assert f"--ray-address {CLUSTER}" in answer(way.split(), capsys)


TYPED = (
    "--strategy mine:Mine",
    "--set strategy=mine:Mine",
    "--set strategy.name=mine:Mine",
    "--set strategy.strategy=mine:Mine",
    "--set strategy={name: mine:Mine}",
    "--compare strategy=fedavg,mine:Mine",
    "--compare strategy.strategy=[mine:Mine]",
    "--check-strategy mine:Mine",
    "--trust-strategy fedavg mine:Mine",
)


@pytest.mark.parametrize("typed", TYPED)
def test_what_was_typed_is_confirmed(typed: str) -> None:
    flag, _, value = typed.partition(" ")
    words = [value] if "{" in value else value.split()
    arguments = make_parser().parse_args([flag, *words])
    experiment = config.load(None, {"strategy.name": "mine:Mine"})
    check_confirmed(experiment, confirmed_by(arguments))


def test_a_name_that_was_typed_confirms_no_other() -> None:
    arguments = make_parser().parse_args(["--trust-strategy", "mine:Mine"])
    for other in ("mine:Other", "mine.more:Mine", "mine"):
        if not is_known(other):
            with pytest.raises(UserError, match="if you trust the code, add: --trust-strategy"):
                check_confirmed(
                    config.load(None, {"strategy.name": other}), confirmed_by(arguments)
                )


def test_a_cluster_that_was_typed_is_confirmed() -> None:
    for typed in (["--ray-address", CLUSTER], ["--set", f"engine.ray_address={CLUSTER}"]):
        arguments = make_parser().parse_args(typed)
        check_confirmed(read_config(arguments), confirmed_by(arguments))


def test_known_strategies_need_no_word() -> None:
    for name in ("flwr.serverapp.strategy:FedAdam", "strategies.fedavg:FedAvg", "fedavg"):
        assert is_known(name)
        client_half(strategies.load_for(config.load(None, {"strategy.name": name})))


@pytest.mark.parametrize("start", [[str(ROOT / "simulate.py")], ["-m", "simulate"]])
def test_a_working_directory_is_no_place_to_import_from(start: list[str], folder: Path) -> None:
    """Whatever lies there, be it called as a module that the program imports."""
    for module in ("simulate.py", "sitecustomize.py", "usercustomize.py"):
        if start[0] == "-m":  # what Python itself runs from there before this program begins
            (folder / module).unlink()
    for package in ("fl_vitlora", "multiprocessing"):
        (folder / package / "__init__.py").write_bytes((folder / "mine.py").read_bytes())
    write(folder, strategy="mine:Mine")
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}  # as a person has it
    done = subprocess.run(
        [sys.executable, *start, "--resume", "."],
        env={**inherited, "PYTHONPATH": str(ROOT) if start[0] == "-m" else ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 2, done.stderr
    assert "--trust-strategy mine:Mine" in done.stderr


def test_workers_import_from_the_working_directory_only_where_the_program_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks the description of the job whether to put it on their path."""
    assert not imports_from(folder)
    assert job_with_own_path()._runtime_env_has_working_dir()  # so Ray adds nothing
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert imports_from(folder)
    assert not job_with_own_path()._runtime_env_has_working_dir()


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_no_file_of_a_run_folder_is_unpickled(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them is a pickle here; whoever reads one refuses it by its name."""
    bomb = pickle.dumps(Bomb())
    for name in ("checkpoint/round-000001", "shards/client-00000", "shards/reader"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.safetensors").write_bytes(bomb)
    (folder / "rounds.jsonl").write_bytes(bomb)
    with pytest.raises(UserError, match="round-000001"):
        Logbook.take_up(folder)
    with pytest.raises(UserError, match="reader"):
        open_reader(folder / "shards" / "reader.safetensors")
    assert "client-00000" in answer(["--rotate-key", "shards"], capsys)
    write(folder, clients=3)
    (folder / "result.json").write_bytes(bomb)
    assert "result.json" in answer(["--resume", "."], capsys)
    (folder / "config.yaml").write_bytes(bomb)
    assert "config.yaml" in answer(["--resume", "."], capsys)
    assert "config.yaml" in answer(["--config", "config.yaml"], capsys)
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize("script", ["run.py", "dataset.py", "imagefolder.py", "loading.py"])
def test_a_data_set_with_a_script_in_it_is_not_run(script: str, folder: Path) -> None:
    (folder / script).write_bytes((folder / "mine.py").read_bytes())
    with pytest.raises(UserError):
        sources.load(config.DataConfig(name=str(folder)))


@pytest.mark.parametrize("content", [b"ssh-ed25519 AAAA me@here\n", b"\x80\x04", b"", b"00\n"])
def test_a_file_that_is_no_key_ring_is_refused_and_left_as_it_is(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_bytes(content)
    with pytest.raises(UserError, match="hexadecimal digits in every line") as refused:
        open_or_create_ring(path)
    assert path.read_bytes() == content
    assert "AAAA" not in str(refused.value)


def test_a_copy_of_strategies_in_the_folder_is_not_the_projects(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "mine.py", folder / "strategies" / "fedprox.py")
    loaded = strategies.load_for(config.load(None, {"strategy.name": "fedprox"}))
    assert Path(sys.modules[type(loaded).__module__].__file__ or "").parent == ROOT / "strategies"
