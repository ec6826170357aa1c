"""Bytes that Flower's transport adds to a message, measured by a proxy before each SuperNode.

A SuperLink and two SuperNodes run a small version of the default job, without TLS. Each node
reaches the SuperLink through a proxy that counts the bytes of every HTTP request and response by
its path. The run's ledger counts the objects of messages; all other bytes are Flower's own.

The two numbers for a message are those of `fl_vitlora.communication.carrier`. These numbers count
the requests that a message causes: their lines and headers with the node's signature, ids of
objects, and confirmations. Heartbeats, and requests that find nothing to fetch, depend on time and
not on messages. Downloads of the run and of the app happen once for each node. The program lists
these requests and downloads separately.

    python benchmarks/flower_traffic.py
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config import load, to_yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLIENTS, ROUNDS = 2, 6
SECONDS_TO_WAIT = 600
MOVES = {  # the requests that a message causes, by the direction of the message
    "downlink": ("pull-messages", "pull-object", "confirm-message-received"),
    "uplink": ("push-messages", "push-object"),
}


@dataclass
class Exchange:
    """A request and its response.

    Attributes:
        path: The last part of the URL.
        up: Bytes sent to the SuperLink.
        down: Bytes sent to the node.
        empty: True if the response has no content.
    """

    path: str
    up: int
    down: int = 0
    empty: bool = False


class Proxy:
    """A proxy that forwards the bytes of one node, and counts them by request.

    Args:
        target: Port of the SuperLink.
    """

    def __init__(self, target: int) -> None:
        self.exchanges: list[Exchange] = []
        self.port = free_port()
        self._target = target
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        async with server:
            await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        state: dict[str, Any] = {"asking": False}
        await asyncio.gather(
            self._pass(reader, back, state, up=True), self._pass(there, writer, state, up=False)
        )

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        state: dict[str, Any],
        *,
        up: bool,
    ) -> None:
        """Forwards one direction. A node sends a request only after the last response arrived."""
        while data := await source.read(2**16):
            if up and not state["asking"]:
                path = data.split(b" ", 2)[1].decode().rpartition("/")[2]
                self.exchanges.append(Exchange(path=path, up=0))
                state["now"] = self.exchanges[-1]
            now: Exchange = state["now"]
            if up:
                now.up += len(data)
            else:
                if state["asking"]:
                    now.empty = b"content-length: 0\r\n" in data.lower()
                now.down += len(data)
            state["asking"] = up
            sink.write(data)
            await sink.drain()
        sink.close()


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(log: Path, *command: str, environment: dict[str, str]) -> Iterator[None]:
    """Runs a program while the block runs, with its output in a log file."""
    with log.open("wb") as file:
        running = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            running.terminate()
            running.wait(timeout=30)


def await_file(path: Path) -> None:
    """Waits until a file exists.

    Raises:
        RuntimeError: If the file does not appear in time; the message ends with the logs.
    """
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not path.exists():
        if time.monotonic() > deadline:
            logs = sorted(path.parent.parent.glob("*.log"))
            said = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)
            raise RuntimeError(f"{path} did not appear\n{said}")
        time.sleep(0.5)


def await_port(port: int) -> None:
    """Waits until a program listens on a port.

    Raises:
        RuntimeError: If no program listens in time.
    """
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port}")


def simulate(folder: Path) -> None:
    """Simulates a small run, for its shards and its configuration file."""
    settings = {
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "data.limit": 120,
        "engine.device": "cpu",
        "encryption.key_file": str(folder / "owner.key"),
        "out": str(folder / "simulated"),
    }
    (folder / "config.yaml").write_text(to_yaml(load(None, settings)))
    command = [sys.executable, "simulate.py", "--config", str(folder / "config.yaml")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def deploy(folder: Path) -> list[Proxy]:
    """Runs the same job on a SuperLink and SuperNodes, and returns the nodes' proxies."""
    given = f'config="{folder}/config.yaml" shards="{folder}/simulated/shards"'
    port, home = free_port(), folder / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    proxies = [Proxy(port) for _ in range(CLIENTS)]
    with contextlib.ExitStack() as stack:
        link = [str(BIN / "flower-superlink"), "--insecure", "--port", str(port)]
        link.append("--disable-runtime-dependency-installation")
        stack.enter_context(process(folder / "link.log", *link, environment=environment))
        await_port(port)
        for client, proxy in enumerate(proxies):
            await_port(proxy.port)
            proxy.exchanges.clear()
            node = [str(BIN / "flower-supernode"), "--insecure"]
            node += ["--superlink", f"127.0.0.1:{proxy.port}", "--port", str(free_port())]
            node += ["--node-config", f"partition-id={client} num-partitions={CLIENTS} {given}"]
            log = folder / f"node-{client}.log"
            stack.enter_context(process(log, *node, environment=environment))
        command = [str(BIN / "flwr"), "run", str(ROOT / "deploy"), "here"]
        command += ["--run-config", f'{given} out="{folder}/deployed" classes=10']
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        await_file(folder / "deployed" / "result.json")
    return proxies


def main() -> None:
    """Runs the measurement, and prints the bytes that a message costs on top of its objects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        exchanges = [one for proxy in deploy(folder) for one in proxy.exchanges]
        with (folder / "deployed" / "communication.csv").open(newline="") as file:
            ledger = list(csv.DictReader(file))
        wire = json.loads((folder / "deployed" / "result.json").read_text())["communication"]
    for direction, paths in MOVES.items():
        moved = [x for x in exchanges if x.path in paths and not (x.path == paths[0] and x.empty)]
        objects = wire[f"{direction}_bytes"]
        count = sum(row["direction"] == direction for row in ledger)
        up, down = sum(x.up for x in moved), sum(x.down for x in moved)
        own = up + down - objects
        print(
            f"{direction}: {count} messages of {objects / count:,.0f} bytes in {len(moved)} "
            f"requests; {own / count:,.0f} bytes more for each ({up / count:,.0f} up and "
            f"{down / count:,.0f} down, objects included)"
        )
    idle = [x for x in exchanges if x.path == "pull-messages" and x.empty]
    each = sum(x.up + x.down for x in idle) / max(1, len(idle))
    print(f"a request that finds no message: {each:,.0f} bytes; there were {len(idle)}")
    moves = {path for paths in MOVES.values() for path in paths}
    for path in sorted({x.path for x in exchanges} - moves):
        some = [x for x in exchanges if x.path == path]
        size = sum(x.up + x.down for x in some) / len(some)
        print(f"{path}: {len(some)} requests of {size:,.0f} bytes")


if __name__ == "__main__":
    main()
