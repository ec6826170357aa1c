"""The environment in which Ray starts: network address, signals, and the workers' import path."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.free_ports import free_port

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_START = 180.0
UNUSED_PORTS = (  # names of Ray's constants, which hold the names of the dashboard agent's ports
    "METRICS_AGENT_PORT_NAME",
    "METRICS_EXPORT_PORT_NAME",
    "DASHBOARD_AGENT_LISTEN_PORT_NAME",
)
# Ray uses gRPC over HTTP/2 (RFC 9113): each side first sends its settings in a frame of type 4.
HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS


def check_address(address: str) -> None:
    """Checks that a Ray cluster answers at an address. Without this check, Ray waits for minutes.

    Args:
        address: "auto", or HOST:PORT.

    Raises:
        UserError: If the address is neither "auto" nor HOST:PORT, or if no Ray answers at the
            address.
    """
    if address == "auto":
        return  # Ray finds the cluster on this machine
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"engine.ray_address {address}: expected the word auto, or HOST:PORT")
    try:
        with socket.create_connection((host, int(port)), SECONDS_TO_CONNECT) as line:
            line.sendall(HTTP2_GREETING)
            answer = line.recv(len(HTTP2_SETTINGS))
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"engine.ray_address {address}: no Ray answers at this address ({error})"
        ) from None
    if answer[3:4] != HTTP2_SETTINGS[3:4] and os.environ.get("RAY_USE_TLS") != "1":
        raise UserError(f"engine.ray_address {address}: the program at this address is not Ray")


@contextmanager
def loopback_alone() -> Iterator[None]:
    """Makes a Ray instance that starts inside the block listen on the loopback address only.

    On macOS and Windows, Ray listens on the loopback address by default. On Linux, Ray replaces
    127.0.0.1 by the network address of this machine and listens on all addresses. Without this
    function, anyone on the network who can connect to this machine could run code in the workers.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def patient_start() -> Iterator[None]:
    """Gives a Ray instance that starts inside the block `SECONDS_TO_START` seconds to start.

    By default, Ray gives up if its own processes have not found each other after 30 seconds. Ray's
    node manager crashes if one of its agents has not reported a port after 15 seconds. On a machine
    with many other busy programs, Ray's processes need more time.
    """
    from ray._private import services

    ask, start = services.get_node, services.start_raylet

    def ask_until_known(*args: Any, **named: Any) -> Any:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                return ask(*args, **named)
            except RuntimeError:  # Ray does not know the node yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node, services.start_raylet = ask_until_known, waiting_for_no_agent(start)
    try:
        yield
    finally:
        services.get_node, services.start_raylet = ask, start


def waiting_for_no_agent(start: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a start function whose node manager does not wait for the ports of its agents.

    The two agents are Python programs that run next to the node manager. The dashboard agent serves
    Ray's web page and metrics. This project uses neither the web page nor the metrics, so it
    reports the ports of the dashboard agent as missing. The other agent prepares the environments
    of workers, and its port is chosen in advance.

    Args:
        start: Ray's function that starts a node manager.

    Returns:
        The function to call in place of `start`. If this version of Ray does not have these ports,
        the result is `start` itself.
    """
    from ray import _raylet

    tell = getattr(_raylet, "persist_port", None)
    names = [getattr(_raylet, name, None) for name in UNUSED_PORTS]
    if tell is None or None in names:
        return start

    @functools.wraps(start)
    def start_raylet(*args: Any, **named: Any) -> Any:
        given = inspect.signature(start).bind(*args, **named).arguments
        for name in names:
            tell(given["session_dir"], given["node_id"], name, -1)
        return start(*args, **{**named, "runtime_env_agent_port": free_port()})

    return start_raylet


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Restores this program's handler of SIGTERM after the block, in which Ray installs its own.

    Ray's handler writes a stack trace, and ends the program with SIGABRT three seconds later.
    Python can set handlers only in its main thread, so this function uses Python's C interface.
    """
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    get.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    before = get(signal.SIGTERM)
    try:
        yield
    finally:
        put(signal.SIGTERM, before)


@contextmanager
def hangup_blocked() -> Iterator[None]:
    """Blocks SIGHUP, so that processes started inside the block survive a closing terminal.

    A closing terminal sends SIGHUP to all processes. After this signal, the program first finishes
    the round, for which it needs its workers, and then stops them. Ray protects its processes from
    Ctrl-C in the same way.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_workers_import_this_package() -> None:
    """Puts this copy of the package first on the path that worker processes inherit.

    Workers do not import from their working directory (``python -P``).
    """
    here = str(Path(__file__).resolve().parents[3])
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])
    os.environ["PYTHONSAFEPATH"] = "1"


def job_with_own_path() -> Any:
    """Returns a `JobConfig` that makes workers import from the same folders as this program.

    By default, Ray puts the working directory first on the import path of every worker. If a user
    starts this program in another person's folder, the workers would run a file ``torch.py`` of
    that person. With this configuration, workers import from the working directory only if this
    program itself imports from the working directory.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:  # if True, Ray leaves the path as it is
            return not imports_from(Path.cwd())

    return OwnPath()


def imports_from(folder: Path) -> bool:
    """Returns True if this program imports modules from a folder.

    Example:
        >>> imports_from(Path(__file__).parent)
        False
    """
    return any(Path(place).resolve() == folder.resolve() for place in sys.path)
