"""The simulation engine: Flower's virtual nodes, with Ray processes as workers.

Flower runs the server in a thread of this process and hands every message for a client to a Ray
actor. Ray is started here, bound to loopback, early and beside other preparations, because it takes
seconds; Flower finds it running. It and its workers stay up for the next simulation until they are
stopped. Or a Ray that runs already, on this machine or several, is joined and left as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fl_vitlora.errors import UserError
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.quiet import silence
from fl_vitlora.storage.session_folder import session_folder

if TYPE_CHECKING:
    from fl_vitlora.training.gpu_memory import Memory

T = TypeVar("T")
WARM_UP = "fl_vitlora.flower.simulation.warm_up"
NICENESS = 0  # Ray takes 15: beside three busy programs, 131 s to the first round instead of 24
WORKERS_PER_GPU = 4  # at most, where nobody said a number
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_END = 10.0
# Ray speaks gRPC, and so HTTP/2 (RFC 9113): each side begins with its settings, frame type 4.
HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS
GREETINGS = 100  # to a worker at once


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that train.

    Attributes:
        device: "cpu" or "cuda".
        count: How many.
        gpus: How many GPUs they share.
        address: Of the Ray cluster they are to run on; empty where one is started here.
    """

    device: str
    count: int
    gpus: int = 0
    address: str = ""

    @property
    def a_gpu(self) -> int:
        """Counts the most of them that share one GPU; none on the CPU."""
        return math.ceil(self.count / self.gpus) if self.gpus else 0

    @property
    def resources(self) -> dict[str, int | float]:
        """Returns the share of the machine that each takes, as Ray counts it.

        A whole number of shares makes up a GPU, so that all find a place: with five workers of two
        fifths on two GPUs, one would wait for ever.

        Example:
            >>> Workers(device="cuda", count=3, gpus=2).resources
            {'num_cpus': 1, 'num_gpus': 0.5}
        """
        return {"num_cpus": 1, "num_gpus": 1 / self.a_gpu if self.gpus else 0}


def choose_workers(device: str, count: int | None, most: int, address: str = "") -> Workers:
    """Resolves "auto" and the number of workers for this machine, or for a cluster.

    Args:
        device: "auto", "cpu" or "cuda".
        count: Workers; one a core on the CPU, four a GPU if not given, of which its memory may
            not hold all (`gpu_sharing`).
        most: How many can be busy at once, the bundles of clients in a round.
        address: Of a Ray cluster, whose cores and GPUs are not known before it is joined.

    Returns:
        The workers.

    Raises:
        UserError: When a GPU is demanded and there is none; when a cluster does not answer, or is
            named without a number of workers.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not gpus:
        raise UserError("engine.device cuda: PyTorch sees no GPU here; take --device cpu")
    if address:
        if count is None:
            raise UserError(
                f"engine.ray_address {address}: say how many workers are to run there: --workers 16"
            )
        check_address(address)
        busy = min(most, count)
        if device == "cpu" or not gpus:
            return Workers(device="cpu", count=busy, address=address)
        taken = math.ceil(busy / WORKERS_PER_GPU)
        return Workers(device="cuda", count=busy, gpus=taken, address=address)
    if device == "cpu" or not gpus:
        return Workers(device="cpu", count=min(most, count or cores()))
    gpus = min(gpus, most)
    return Workers(device="cuda", count=min(most, count or WORKERS_PER_GPU * gpus), gpus=gpus)


def check_address(address: str) -> None:
    """Checks that somebody at host:port speaks as Ray does; Ray itself would wait for minutes.

    Raises:
        UserError: When nobody does, or it is no address.
    """
    if address == "auto":
        return  # Ray finds the one on this machine
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"engine.ray_address {address}: expected auto, or HOST:PORT")
    try:
        with socket.create_connection((host, int(port)), SECONDS_TO_CONNECT) as line:
            line.sendall(HTTP2_GREETING)
            answer = line.recv(len(HTTP2_SETTINGS))
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"engine.ray_address {address}: no Ray answers there ({error})") from None
    if answer[3:4] != HTTP2_SETTINGS[3:4] and os.environ.get("RAY_USE_TLS") != "1":
        raise UserError(f"engine.ray_address {address}: what answers there is no Ray")


def cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def cores_left_to(workers: Workers) -> Iterator[None]:
    """Computes with the threads that workers on the CPU leave over, one at least, for a while."""
    import torch

    before = torch.get_num_threads()
    if workers.device == "cpu":
        torch.set_num_threads(max(1, cores() - workers.count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ray:
    """Ray on this machine, started in the background.

    Its processes end with the thread that started them, so that thread lives until `stop`.

    Args:
        workers: Decides its resources.
        verbose: Whether it may speak.

    Attributes:
        workers: The same.
        actors: Flower's, left by the last simulation to the next.
        measured: The memory that a worker on a GPU needs, after what it depends on; if known.
    """

    def __init__(self, workers: Workers, *, verbose: bool) -> None:
        self.workers = workers
        self.actors: list[Any] = []
        self.measured: tuple[object, Memory] | None = None
        self._seated: Workers | None = None  # whom the actors were made for
        self._verbose = verbose
        self._error: Exception | None = None
        self._folder = contextlib.ExitStack()
        self._up, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until it is up."""
        self._up.wait()
        if self._error is not None and self.workers.address:
            raise UserError(f"engine.ray_address {self.workers.address}: {self._error}") from (
                self._error
            )
        if self._error is not None:
            if isinstance(self._error, UserError):
                raise self._error
            raise RuntimeError(f"Ray does not start: {self._error}") from self._error

    def actors_for(self, workers: Workers) -> list[Any]:
        """Returns the actors that were left by as many workers, and ends those of any others.

        Args:
            workers: Those of the next simulation.

        Returns:
            The actors, which the simulation keeps up to date.
        """
        if workers != self._seated:
            self.end_actors()
            self._seated = workers
        return self.actors

    def end_actors(self) -> None:
        """Ends the actors that are left, and waits until their memory is free again."""
        if not self.actors:
            return
        import ray

        processes = [process for actor in self.actors if (process := _process_of(actor))]
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()
        deadline = time.monotonic() + SECONDS_TO_END
        while any(map(_runs, processes)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it and its workers."""
        self.actors.clear()
        self._ended.set()
        self._thread.join()

    def _live(self) -> None:
        try:
            import ray

            _let_workers_import_this_package()
            if not self._verbose:
                silence()
            place = contextlib.nullcontext() if self.workers.address else loopback_alone()
            with place, sigterm_as_before(), hangup_blocked():
                ray.init(
                    configure_logging=self._verbose,
                    log_to_driver=self._verbose,
                    logging_level=logging.INFO if self._verbose else logging.CRITICAL,
                    job_config=job_with_own_path(),
                    **(self._joining() if self.workers.address else self._starting()),
                )
        except Exception as error:  # handed to the thread that waits
            self._error = error
        self._up.set()
        self._ended.wait()
        if self._error is None:
            ray.shutdown()  # a Ray that was joined goes on, without this program's workers
        self._folder.close()

    def _starting(self) -> dict[str, Any]:
        """Says what a Ray of one's own is to be."""
        return {
            **self._folder.enter_context(session_folder()),
            "address": "local",  # whatever else runs on this machine
            "num_cpus": self.workers.count,
            "num_gpus": self.workers.gpus,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_system_config": {
                "preload_python_modules": [WARM_UP],
                "worker_niceness": NICENESS,
            },
        }

    def _joining(self) -> dict[str, Any]:
        """Says which Ray is to be joined, and where its workers find this package."""
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        return {"address": self.workers.address, "runtime_env": {"env_vars": path}}


@contextmanager
def loopback_alone() -> Iterator[None]:
    """Lets a Ray that is started here listen on loopback alone, as it does on macOS and Windows.

    Elsewhere Ray takes 127.0.0.1 for this machine's name on the network, and listens on every
    address that it has; whoever reaches one of them can then run code in the workers.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Keeps this program's handler of SIGTERM, be it one in Python or the system's.

    That of Ray's libraries writes a stack first, and ends the program with SIGABRT three seconds
    later, whatever it does meanwhile. Python sets handlers in its main thread alone, hence this.
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
    """Lets processes that begin meanwhile outlive the terminal, as Ray lets them outlive Ctrl-C.

    A terminal that is closed tells all of them; this program ends its round, and then them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Engine:
    """Keeps one Ray up from run to run, as long as they need the same workers.

    Args:
        verbose: Whether Ray may speak.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._ray: Ray | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, workers: Workers) -> Ray:
        """Returns the Ray that is up where its workers fit; else ends it and starts another."""
        if self._ray is None or self._ray.workers != workers:
            self.stop()
            self._ray = Ray(workers, verbose=self._verbose)
        if workers.address:
            self._ray.wait()  # what the user named may not be there
        return self._ray

    def stop(self) -> None:
        """Ends what is up, if anything is; the next start is a fresh one."""
        if self._ray is not None:
            self._ray.stop()
            self._ray = None


def _process_of(actor: Any) -> int | None:
    """Asks an actor on this machine for the number of its process; none if it does not answer."""
    import ray

    try:
        return int(ray.get(actor.process.remote(), timeout=SECONDS_TO_END))
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None


def _runs(process: int) -> bool:
    """Tells whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _let_workers_import_this_package() -> None:
    """Puts this very copy of the package first on the path that worker processes inherit.

    They import nothing from the working directory for being started there (``python -P``).
    """
    here = str(Path(__file__).resolve().parents[3])
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])
    os.environ["PYTHONSAFEPATH"] = "1"


def job_with_own_path() -> Any:
    """Describes this program to Ray, so that workers import from where this program does.

    Ray puts the working directory first on the path of every worker. In a folder of somebody else,
    whatever is called ``torch.py`` there would be run. Here Ray does so only where this program
    imports from its working directory itself.

    Returns:
        A `JobConfig`.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:  # then Ray leaves the path as it is
            return not imports_from(Path.cwd())

    return OwnPath()


def imports_from(folder: Path) -> bool:
    """Tells whether this program imports modules from a folder.

    Example:
        >>> imports_from(Path(__file__).parent)
        False
    """
    return any(Path(place).resolve() == folder.resolve() for place in sys.path)


def simulate(
    client_app: object,
    main: Callable[[object, threading.Event], T],
    *,
    clients: int,
    together: int,
    patience: float,
    states: ClientStates,
    workers: Workers,
    ray: Ray,
    verbose: bool,
) -> T:
    """Runs a server function against simulated clients.

    Args:
        client_app: Flower's ClientApp; it is sent to the workers with every message.
        main: Takes Flower's grid, and an event that is set when the simulation is broken off; what
            it returns is returned.
        clients: How many nodes there are.
        together: How many clients a worker trains in one batch, at most.
        patience: Seconds that a worker may take for each client.
        states: What the clients remember, now and at the end.
        workers: Those that train, not more than Ray was started for.
        ray: Is up, and stays up with its workers.
        verbose: Whether Flower may speak.

    Returns:
        The result of ``main``.
    """
    from flwr.app import Context, MessageType
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from fl_vitlora.flower.simulation.backend import kept_workers
    from fl_vitlora.flower.simulation.delivery import prompt_delivery

    outcome: list[T] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    each = math.ceil(clients / workers.count)  # so that every worker has some, to get ready
    greetings = min(GREETINGS, each)
    most = {MessageType.QUERY: greetings, MessageType.TRAIN: together}
    server_app = ServerApp()

    @server_app.main()
    def _main(grid: Grid, context: Context) -> None:
        del context
        try:
            push_at_once(grid)
            outcome.append(main(grid, stop))
        except BaseException as error:  # carried to the caller's thread
            errors.append(error)
        finally:
            end()

    try:
        with (
            cores_left_to(workers),
            kept_workers(ray.actors_for(workers), workers.count, patience) as end,
            prompt_delivery(most, states),
        ):
            run_simulation(
                server_app=server_app,
                client_app=client_app,  # type: ignore[arg-type]
                num_supernodes=clients,
                backend_config={"client_resources": {**workers.resources}},
                verbose_logging=verbose,
            )
    finally:
        stop.set()
    if errors:
        raise errors[0]
    return outcome[0]


def push_at_once(grid: Any) -> None:
    """Lets messages that are sent together be seen together, so that bundles do not vary."""
    push: Callable[[Sequence[object]], Sequence[str]] = grid.push_messages

    def push_messages(messages: Sequence[object]) -> Sequence[str]:
        with grid.state.lock:
            return push(messages)

    grid.push_messages = push_messages
