"""The same apps on a real SuperLink and two SuperNodes give what the simulation gave.

What the nodes send and receive there is counted by the SuperLink as well, and the ledger agrees.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fl_vitlora.adaptation import policies
from fl_vitlora.command_line import tools
from fl_vitlora.config import load, to_yaml
from fl_vitlora.experiment.recorded_updates import FOLDER, file_of, read_round
from fl_vitlora.flower.simulation.free_ports import free_port
from fl_vitlora.strategy import averaged
from tests.waiting import WATCHDOG, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CLIENTS, ROUNDS = 2, 2
GIVEN_KEYS: dict[str, dict[str, Any]] = {  # and shards with sensors and copies
    "shared key": {},
    "a key for each client": {
        "encryption.scope": "client",
        "encryption.adapt": True,
        "finetuning.patch_embedding": "aligned",
        "data.feature_skew": 0.5,
        "data.copies": 2,
        "data.augment": ["crop"],
    },
}


@contextlib.contextmanager
def process(log: Path, *command: str, environment: dict[str, str]) -> Iterator[None]:
    """Runs a program as long as the test needs it."""
    with log.open("wb") as file:
        running = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            running.terminate()
            running.wait(timeout=WATCHDOG)


@contextlib.contextmanager
def shown(logs: Path) -> Iterator[None]:
    """Shows the end of all logs if what happens inside the block fails."""
    try:
        yield
    except AssertionError as error:
        said = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs.glob("*.log"))
        pytest.fail(f"{error}\n{said}")


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), WATCHDOG):
        return True
    return False


def simulate(folder: Path, given_keys: dict[str, Any]) -> None:
    """Leaves a run in `simulated`, with the shards and the configuration for the other one."""
    settings = {
        **given_keys,
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "seed": 3,
        "data.limit": 120,
        "engine.device": "cpu",
        "record_updates": True,
        "encryption.key_file": str(folder / "owner.key"),
        "out": str(folder / "simulated"),
    }
    (folder / "config.yaml").write_text(to_yaml(load(None, settings)))
    command = [sys.executable, "simulate.py", "--config", str(folder / "config.yaml")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def hand_out(folder: Path) -> Path:
    """Gives every node the storage key of its shard; nobody gets the ring.

    A node that turns tensors by its key gets this key alone, which opens its shard, too.
    """
    config = load(str(folder / "config.yaml"), {"encryption.key_file": "nowhere.key"})
    (folder / "deployed.yaml").write_text(to_yaml(config))
    command = [sys.executable, "simulate.py", "--config", str(folder / "config.yaml")]
    command += ["--storage-keys", str(folder / "simulated"), "--out", str(folder / "keys")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for client in range(CLIENTS if policies.clients_turn(config) else 0):
        own = folder / "keys" / f"client-{client}.own"
        given = ["keys", "client", str(folder / "owner.key"), str(client), str(own)]
        tools.main([*given, "--config", str(folder / "config.yaml")])
        config = load(str(folder / "config.yaml"), {"encryption.key_file": str(own)})
        (folder / f"deployed-{client}.yaml").write_text(to_yaml(config))
    (folder / "owner.key").rename(folder / "owner.away")
    return folder / "keys"


def deploy(folder: Path) -> None:
    """Leaves a run in `deployed`, and in `counts.csv` what passed the SuperLink."""
    shards = f'shards="{folder}/simulated/shards"'
    given = f'config="{folder}/deployed.yaml" {shards}'
    keys = hand_out(folder)
    api, home = f"127.0.0.1:{free_port()}", folder / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{api}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # the apps are those of this checkout, wherever they run
    }
    with contextlib.ExitStack() as stack:
        link = [sys.executable, "-P", str(ROOT / "tests" / "counting_superlink.py")]
        link += [str(folder / "counts.csv"), "--insecure", "--port", api.rpartition(":")[2]]
        link.append("--disable-runtime-dependency-installation")
        stack.enter_context(process(folder / "link.log", *link, environment=environment))
        for client in range(CLIENTS):
            node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", api]
            own = f'{given} storage-key="{keys}/client-{client:05d}.key"'
            if (folder / f"deployed-{client}.yaml").exists():
                own = f'config="{folder}/deployed-{client}.yaml" {shards}'
            node += ["--node-config", f"partition-id={client} num-partitions={CLIENTS} {own}"]
            node += ["--port", str(free_port())]
            log = folder / f"node-{client}.log"
            stack.enter_context(process(log, *node, environment=environment))
        command = [str(BIN / "flwr"), "run", str(ROOT / "deploy"), "here"]
        told = f'out="{folder}/deployed"'
        if (keys / "test.key").exists():  # else clients evaluate
            told += f' storage-key="{keys}/test.key"'
        told += f' classes="{folder}/simulated/classes.json"'
        command += ["--run-config", f"{given} {told}"]
        with shown(folder):
            wait_until(lambda: listens(api))
        submitted = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        with shown(folder):
            wait_until((folder / "deployed" / "result.json").exists)


@pytest.fixture(scope="module", params=list(GIVEN_KEYS.values()), ids=list(GIVEN_KEYS))
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs an experiment twice: a folder with `simulated`, `deployed` and `counts.csv`."""
    folder = tmp_path_factory.mktemp("runs")
    simulate(folder, request.param)
    deploy(folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sums(entries: Iterable[tuple[str, int, int]]) -> Counter[tuple[str, int]]:
    """Sums bytes by direction and client."""
    found: Counter[tuple[str, int]] = Counter()
    for direction, client, size in entries:
        found[direction, client] += size
    return found


def clients_of_nodes(folder: Path) -> dict[str, int]:
    """Reads which SuperNode had which shard off the nodes' own logs."""
    found = {}
    for client in range(CLIENTS):
        told = re.search(r"SuperNode ID: (\d+)", (folder / f"node-{client}.log").read_text())
        assert told is not None
        found[told[1]] = client
    return found


def test_deployed_run_equals_the_simulated_one(runs: Path) -> None:
    simulated = load_file(runs / "simulated" / "model.safetensors")
    deployed = load_file(runs / "deployed" / "model.safetensors")
    assert simulated.keys() == deployed.keys()
    assert all(torch.equal(simulated[name], deployed[name]) for name in simulated)


def test_the_ledger_is_what_passed_the_superlink_to_the_byte(runs: Path) -> None:
    """All bytes agree, those of greeting and evaluation too, each way and for each client."""
    clients = clients_of_nodes(runs)
    counted = sums(
        (row["direction"], clients[row["node"]], int(row["bytes"]))
        for row in rows(runs / "counts.csv")
    )
    ledger = sums(
        (row["direction"], int(row["client"]), int(row["payload"]) + int(row["overhead"]))
        for row in rows(runs / "deployed" / "communication.csv")
    )
    assert len(counted) == 2 * CLIENTS
    assert counted == ledger
    assert counted.total() == ledger.total()


@pytest.mark.parametrize("kind", ["simulated", "deployed"])
def test_the_updates_that_a_server_records_lead_from_each_model_to_the_next(
    runs: Path, kind: str
) -> None:
    """There is one file for each round, and the mean of its updates makes the next model."""
    rounds = range(1, ROUNDS + 1)
    files = sorted((runs / kind / FOLDER).iterdir())
    assert files == [file_of(runs / kind, number) for number in rounds]
    recorded = [read_round(runs / kind, number) for number in rounds]
    models = [sight.model for sight in recorded[1:]]
    models.append(load_file(runs / kind / "model.safetensors"))
    for sight, following in zip(recorded, models, strict=True):
        assert [update.client for update in sight.updates] == list(range(CLIENTS))
        new = averaged(sight.model, sight.updates)
        assert new.keys() == following.keys()
        assert all(torch.equal(new[name], following[name]) for name in new)
        assert any(not torch.equal(new[name], sight.model[name]) for name in new)


def test_a_deployed_server_records_what_the_simulated_one_does(runs: Path) -> None:
    for number in range(1, ROUNDS + 1):
        simulated, deployed = (read_round(runs / k, number) for k in ("simulated", "deployed"))
        assert all(torch.equal(simulated.model[n], t) for n, t in deployed.model.items())
        for one, other in zip(simulated.updates, deployed.updates, strict=True):
            assert (one.client, one.samples, one.loss) == (other.client, other.samples, other.loss)
            assert one.delta.keys() == other.delta.keys()
            assert all(torch.equal(one.delta[n], t) for n, t in other.delta.items())
