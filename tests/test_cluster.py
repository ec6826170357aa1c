"""A Ray that runs already is joined and left running; its workers compute the same bits."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.ray_environment import check_address
from fl_vitlora.flower.simulation.workers import choose_workers
from tests.whole_runs import execute

pytestmark = pytest.mark.slow

SECONDS_TO_START = 300  # a watchdog


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(address: str) -> bool:
    try:
        check_address(address)
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    start += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    start += ["--include-dashboard=false", f"--temp-dir={tmp_path_factory.mktemp('r')}"]
    log = tmp_path_factory.mktemp("log") / "ray"
    with log.open("w") as out:
        process = subprocess.Popen(start, stdout=out, stderr=out, start_new_session=True)
    address = f"127.0.0.1:{port}"
    deadline = time.monotonic() + SECONDS_TO_START
    while "--block" not in log.read_text() and "block forever" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=SECONDS_TO_START)


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
