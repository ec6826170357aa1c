"""The same apps on a real SuperLink and two SuperNodes give what the simulation gave."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fl_vitlora.config import load, to_yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PATIENCE = 180  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
            running.wait(timeout=30)


def await_file(path: Path, logs: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            said = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs.glob("*.log"))
            pytest.fail(f"{path.name} did not appear\n{said}")
        time.sleep(0.5)


@pytest.mark.parametrize(
    "given_keys",
    [
        {},
        {
            "encryption.scope": "client",
            "encryption.adapt": True,
            "finetuning.patch_embedding": "aligned",
        },
    ],
    ids=["shared key", "a key for each client"],
)
def test_deployed_run_equals_the_simulated_one(given_keys: dict[str, Any], tmp_path: Path) -> None:
    settings = {
        **given_keys,
        "clients": 2,
        "rounds": 2,
        "seed": 3,
        "data.limit": 120,
        "engine.device": "cpu",
        "encryption.key_file": str(tmp_path / "owner.key"),
        "out": str(tmp_path / "simulated"),
    }
    (tmp_path / "config.yaml").write_text(to_yaml(load(None, settings)))
    simulate = [sys.executable, "simulate.py", "--config", str(tmp_path / "config.yaml")]
    subprocess.run(simulate, cwd=ROOT, check=True, capture_output=True)

    given = f'config="{tmp_path}/config.yaml" shards="{tmp_path}/simulated/shards"'
    api, home = f"127.0.0.1:{free_port()}", tmp_path / "flower"
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
    }
    with contextlib.ExitStack() as stack:
        link = [str(BIN / "flower-superlink"), "--insecure", "--port", api.rpartition(":")[2]]
        link.append("--disable-runtime-dependency-installation")
        stack.enter_context(process(tmp_path / "link.log", *link, environment=environment))
        for client in range(2):
            node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", api]
            node += ["--node-config", f"partition-id={client} num-partitions=2 {given}"]
            node += ["--port", str(free_port())]
            log = tmp_path / f"node-{client}.log"
            stack.enter_context(process(log, *node, environment=environment))
        command = [str(BIN / "flwr"), "run", str(ROOT / "deploy"), "here"]
        command += ["--run-config", f'{given} out="{tmp_path}/deployed" classes=10']
        wait_for_port(api)
        submitted = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        await_file(tmp_path / "deployed" / "result.json", tmp_path)

    simulated = load_file(tmp_path / "simulated" / "model.safetensors")
    deployed = load_file(tmp_path / "deployed" / "model.safetensors")
    assert simulated.keys() == deployed.keys()
    assert all(torch.equal(simulated[name], deployed[name]) for name in simulated)


def wait_for_port(address: str) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"nothing listens on {address}")
