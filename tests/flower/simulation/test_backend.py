"""The backend must leave nobody who asks Ray after its end: Ray would end the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.engine import Engine, simulate
from fl_vitlora.flower.simulation.workers import Workers
from tests.waiting import WATCHDOG, wait_until

pytestmark = pytest.mark.slow

SLOW = 4 * WATCHDOG  # seconds that a client is at work for nobody
ROOT = Path(__file__).resolve().parents[3]

BROKEN_OFF = """
import threading, time
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from fl_vitlora.flower.simulation.backend import KeptWorkers
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers
from tests.waiting import wait_until

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
app = ClientApp()
asked, errors = threading.Barrier(5), []
begun = Path("begun").resolve()  # gets a byte whenever a worker begins with a message

@app.train()
def train(message, context):
    with open(message.content["config"]["begun"], "ab") as file:
        file.write(b"x")
    time.sleep(message.content["config"]["seconds"])
    return Message(RecordDict(), reply_to=message)

def message(seconds):
    config = ConfigRecord({"seconds": seconds, "begun": str(begun)})
    return Message(RecordDict({"config": config}), 1, "train")

def ask(seconds):
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    backend.process_message(message(0.01), context)  # the workers are up
    asked.wait()
    try:
        while True:
            backend.process_message(message(seconds), context)
    except Exception as error:
        errors.append(error)

up = Ray(Workers(device="cpu", count=2), verbose=False)
up.wait()
kept = []
resources = {"num_cpus": 1}
backend = KeptWorkers(kept, 2, 3600.0, {"client_resources": resources, "actor": {"tensorflow": 0}})
backend.build(lambda: app)
askers = [threading.Thread(target=ask, args=[SECONDS], daemon=True) for _ in range(4)]
for asker in askers:
    asker.start()
asked.wait()
wait_until(lambda: begun.stat().st_size >= 4 + 2)  # both workers have begun, after four messages
backend.terminate()
for asker in askers:
    asker.join(WATCHDOG)
assert len(errors) == 4, errors
up.stop()
"""


@pytest.mark.parametrize("seconds", [0.01, SLOW])
def test_a_simulation_that_is_broken_off_leaves_nobody_who_waits(
    seconds: float, tmp_path: Path
) -> None:
    program = BROKEN_OFF.replace("SECONDS", str(seconds)).replace("WATCHDOG", str(WATCHDOG / 4))
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=WATCHDOG,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


app = ClientApp()


@app.train()
def _train(message: Message, context: Context) -> Message:
    """The slow client says that it has begun, and the quick one ends after that."""
    config = message.content.config_records["config"]
    begun = Path(str(config["begun"]))
    if config["slow"]:
        begun.touch()
        time.sleep(SLOW)
    wait_until(begun.exists)
    return Message(RecordDict(), reply_to=message)


def test_who_is_at_work_for_nobody_does_not_hold_up_the_end_and_is_replaced(
    engine: Engine, tmp_path: Path
) -> None:
    """The server asks two clients, waits for the quick one alone, and is done."""
    workers = Workers(device="cpu", count=2)
    ray = engine.start(workers)
    ray.wait()

    def serve(grid: Any, stop: threading.Event) -> list[float]:
        wait_until(lambda: len(list(grid.get_node_ids())) >= 2)
        begun = str(tmp_path / f"begun {len(done)}")
        told = [ConfigRecord({"slow": slow, "begun": begun}) for slow in (False, True)]
        sent = [
            Message(RecordDict({"config": config}), node, "train")
            for node, config in zip(grid.get_node_ids(), told, strict=True)
        ]
        quick, _ = grid.push_messages(sent)
        wait_until(lambda: bool(list(grid.pull_messages({quick}))))
        done.append(time.monotonic())
        return done

    done: list[float] = []
    for _ in range(2):
        simulate(
            app,
            serve,
            clients=2,
            together=1,
            patience=2 * SLOW,
            states=ClientStates(),
            workers=workers,
            ray=ray,
            verbose=False,
        )
        assert time.monotonic() - done[-1] < SLOW / 2  # nobody waited for the slow one
        assert len(ray.actors) == 1
