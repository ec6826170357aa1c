"""A Ray that runs already is joined and left running; its workers compute the same bits."""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation import ray_environment
from fl_vitlora.flower.simulation.free_ports import free_port
from fl_vitlora.flower.simulation.ray_cluster import NICENESS
from fl_vitlora.flower.simulation.ray_environment import check_address
from fl_vitlora.flower.simulation.workers import choose_workers
from tests.waiting import WATCHDOG, wait_until
from tests.whole_runs import execute

pytestmark = pytest.mark.slow

RAY = """
from fl_vitlora.flower.simulation.ray_environment import patient_start
from ray.scripts.scripts import main
with patient_start():
    main()
"""  # Ray's command line, on a machine that may be busy


def answers(address: str) -> bool:
    try:
        check_address(address)
    except UserError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """On a busy machine, Ray does not answer in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_environment, "SECONDS_TO_CONNECT", WATCHDOG)
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    start = [sys.executable, "-c", RAY, "start", "--head", "--block"]
    start += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    start.append(f"--ray-client-server-port={free_port()}")  # else always the same one
    patience = {"worker_niceness": NICENESS, "agent_register_timeout_ms": int(1000 * WATCHDOG)}
    start.append(f"--system-config={json.dumps(patience)}")
    start += ["--include-dashboard=false", f"--temp-dir={tmp_path_factory.mktemp('r')}"]
    log = tmp_path_factory.mktemp("log") / "ray"
    with log.open("w") as out:
        process = subprocess.Popen(start, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until(
            lambda: bool(re.search("--block|block forever", log.read_text())),
            goes_on=lambda: process.poll() is None,
        )
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=WATCHDOG)


def test_a_cluster_is_joined_computes_the_same_and_goes_on(cluster: str, tmp_path: Path) -> None:
    key = str(tmp_path / "owner.key")
    own = execute(tmp_path / "own", rounds=1, encryption__key_file=key)
    joined = execute(
        tmp_path / "joined", rounds=1, encryption__key_file=key, engine__ray_address=cluster
    )
    first, second = (load_file(run.folder / "model.safetensors") for run in (own, joined))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert answers(cluster)


def test_a_run_of_its_own_does_not_join_a_ray_that_happens_to_run(
    cluster: str, tmp_path: Path
) -> None:
    done = execute(tmp_path, rounds=1)
    assert not done.lines[0]["failures"]
    assert answers(cluster)


def test_where_nobody_answers_is_a_mistake():
    with pytest.raises(UserError, match="no Ray answers at this address"):
        choose_workers("cpu", 2, most=4, address=f"127.0.0.1:{free_port()}")


def test_what_answers_in_another_language_is_no_ray():
    with socketserver.TCPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(UserError, match="the program at this address is not Ray"):
            check_address(f"127.0.0.1:{server.server_address[1]}")


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", ":6379", "host:port"])
def test_what_is_no_address_is_told_with_what_one_is(address: str):
    with pytest.raises(UserError, match=f"{address}: expected the word auto, or HOST:PORT"):
        check_address(address)


def test_the_size_of_a_cluster_is_not_guessed():
    with pytest.raises(UserError, match="set the number of workers"):
        choose_workers("cpu", None, most=4, address="127.0.0.1:6379")
