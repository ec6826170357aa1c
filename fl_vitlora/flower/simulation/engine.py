"""The simulation engine: Flower's virtual nodes, with Ray processes as workers.

Flower runs the server in a thread of this process, and gives every message for a client to a Ray
actor. This project starts Ray itself, and Ray listens on the loopback address only. Starting Ray
takes seconds. Therefore Ray is started early, while the run is being prepared, and Flower finds Ray
running. Ray and its workers keep running for the next simulation until `Engine.stop` is called. A
run can also join a Ray instance that already runs, on this machine or on a cluster. A Ray instance
that a run has joined keeps running after the run.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers, cores_left_to

T = TypeVar("T")
GREETINGS = 100  # the largest number of greeting messages that a worker gets at once


class Engine:
    """Keeps one Ray instance running for several runs that need the same workers.

    Args:
        verbose: True if Ray may print and log.
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
        """Returns the running Ray instance if it has the same workers, or else starts a new one."""
        if self._ray is None or self._ray.workers != workers:
            self.stop()
            self._ray = Ray(workers, verbose=self._verbose)
        if workers.address:
            self._ray.wait()  # fails at once if the cluster that the user named cannot be joined
        return self._ray

    def stop(self) -> None:
        """Stops Ray if Ray is running. The method `start` can then start Ray again."""
        if self._ray is not None:
            self._ray.stop()
            self._ray = None


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
    """Runs a server function in a simulation, in which workers act as the clients.

    Args:
        client_app: Flower's ClientApp, which is sent to the workers with every message.
        main: The server function, called with Flower's grid and an event that is set to stop it.
        clients: Number of virtual nodes.
        together: Largest number of clients that a worker trains in one batch.
        patience: Longest time that a worker may take for each client, in seconds.
        states: The stored states of the clients, read and updated by the simulation.
        workers: The workers that train; at most as many as Ray was started for.
        ray: A running Ray instance. Ray and its workers keep running after the simulation.
        verbose: True if Flower may print and log.

    Returns:
        The result of ``main``.
    """
    from flwr.simulation import run_simulation

    from fl_vitlora.flower.simulation.backend import kept_workers
    from fl_vitlora.flower.simulation.delivery import prompt_delivery

    server = _Server(main)
    try:
        with (
            cores_left_to(workers),
            kept_workers(ray.actors_for(workers), workers.count, patience) as end,
            prompt_delivery(_bundle_sizes(clients, together, workers), states, server.pushed),
        ):
            run_simulation(
                server_app=server.app(end),
                client_app=client_app,  # type: ignore[arg-type]
                num_supernodes=clients,
                backend_config={"client_resources": {**workers.resources}},
                verbose_logging=verbose,
            )
    finally:
        server.stop.set()
    return server.result()


def _bundle_sizes(clients: int, together: int, workers: Workers) -> dict[str, int]:
    """Returns the largest number of messages that a worker gets at once, by kind of message.

    The greetings (the first question to each client) are divided among all workers, so that every
    worker loads its model before the training.
    """
    from flwr.app import MessageType

    each = math.ceil(clients / workers.count)
    return {MessageType.QUERY: min(GREETINGS, each), MessageType.TRAIN: together}


class _Server(Generic[T]):
    """Wraps a server function in Flower's ServerApp, and keeps its result or error.

    Flower runs the function in another thread. The caller's thread gets the outcome from `result`.

    Args:
        main: The function that runs the server's side of the simulation.

    Attributes:
        stop: The event that is set when the server function must stop.
        pushed: The event that is set each time after the server has sent messages.
    """

    def __init__(self, main: Callable[[object, threading.Event], T]) -> None:
        self.stop, self.pushed = threading.Event(), threading.Event()
        self._main = main
        self._outcome: list[T] = []
        self._errors: list[BaseException] = []

    def app(self, end: Callable[[], None]) -> Any:
        """Returns Flower's ServerApp, which runs the server function once and then calls `end`.

        Args:
            end: A function that ends the busy workers.
        """
        from flwr.app import Context
        from flwr.serverapp import Grid, ServerApp

        app = ServerApp()

        @app.main()
        def _main(grid: Grid, context: Context) -> None:
            del context
            try:
                push_at_once(grid, self.pushed)
                self._outcome.append(self._main(grid, self.stop))
            except BaseException as error:  # `result` raises the error again
                self._errors.append(error)
            finally:
                end()

        return app

    def result(self) -> T:
        """Returns the result of the server function, or raises its error."""
        if self._errors:
            raise self._errors[0]
        return self._outcome[0]


def push_at_once(grid: Any, pushed: threading.Event) -> None:
    """Makes all messages of one `push_messages` call visible at the same moment.

    Without this function, the delivery could see some of the messages earlier than other messages,
    and the bundles would differ from run to run.

    Args:
        grid: Flower's grid, whose method `push_messages` is replaced.
        pushed: The event that is set after every call, so that the delivery need not wait.
    """
    push: Callable[[Sequence[object]], Sequence[str]] = grid.push_messages

    def push_messages(messages: Sequence[object]) -> Sequence[str]:
        with grid.state.lock:
            ids = push(messages)
        pushed.set()
        return ids

    grid.push_messages = push_messages
