"""Flower's Ray backend with workers that outlive a simulation.

Flower ends its actors and Ray at the end of every simulation, and has no option to keep them.
This backend keeps Ray and the actors, so the next simulation finds workers that have finished their
imports. If a worker dies during a simulation, Flower keeps the dead worker; in this backend, a
`WorkerPool` replaces the dead worker by a new one.

A simulation can end while actors are still working, because the run was interrupted or the server
no longer waits for their replies. If a thread asks Ray for a result after Ray was shut down, the
whole process ends with exit code 1. Therefore no thread may wait for an actor when Ray is shut
down.
Flower ends its backend only after all threads that wait for an actor have returned. Actors whose
replies are no longer needed are ended at once, so that they do not delay the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.server.superlink.fleet.vce.backend.backend import BackendConfig
from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

from fl_vitlora.flower.simulation.worker import Answer, AppError, Worker
from fl_vitlora.flower.simulation.worker_pool import WorkerPool, persist

SECONDS_TO_ANSWER = 60.0


class KeptWorkers(raybackend.RayBackend):
    """A backend that uses the actors of the last simulation and keeps them for the next simulation.

    Args:
        actors: Actors that the last simulation left. At the end of this simulation, the list
            contains the actors for the next simulation.
        most: Largest number of actors. If Ray lacks the resources, fewer actors are started.
        patience: Longest time that an actor may take for one message, in seconds.
        backend_config: Flower's configuration of a backend.
    """

    def __init__(
        self, actors: list[Any], most: int, patience: float, backend_config: BackendConfig
    ) -> None:
        super().__init__(backend_config)
        self._actors, self._most, self._patience = actors, most, patience
        self._pool = WorkerPool([], self._start_worker, patience)

    @property
    def num_workers(self) -> int:
        """Returns the number of threads that give bundles of messages to the actors."""
        return self._pool.slots

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Keeps the actors that are still alive, and starts new actors up to the wanted number."""
        actors = [actor for actor in self._actors if is_alive(actor)]
        most = min(self._most, pool_size_from_resources(self.client_resources))
        actors += [self._start_worker() for _ in range(most - len(actors))]
        self._actors[:] = actors
        self._pool = WorkerPool(actors, self._start_worker, self._patience)
        self.app_fn = app_fn

    def answer(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> tuple[list[Answer | Exception], bool]:
        """Lets one actor answer a bundle of messages. Several threads may call this method at once.

        Args:
            messages: The bundle, with at most one message to each client.
            contexts: The stored states of these clients, in the same order.

        Returns:
            First, one entry for each message: the reply and the client's new context, or the error
            if the app failed or the actor was lost on every attempt. Second, True if the bundle
            was split into single messages because three actors were lost with the whole bundle.
        """
        tried: list[Any] = []

        def ask(bundle: Sequence[tuple[Message, Context]]) -> list[Answer | AppError]:
            def call(actor: Any) -> Any:
                return actor.answer.remote(self.app_fn, *map(list, zip(*bundle, strict=True)))

            return list(self._pool.ask(call, len(bundle), tried))

        return persist(list(zip(messages, contexts, strict=True)), ask)

    def process_message(self, message: Message, context: Context) -> Answer:
        """Answers one message. Flower requires this method of every backend.

        Args:
            message: The message to a client.
            context: The stored state of this client.

        Returns:
            The reply, and the client's new context.

        Raises:
            Exception: If the app raised an error or the actor was lost.
        """
        (answer,), _ = self.answer([message], [context])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Ends the busy actors, and returns when no thread waits for an actor any more."""
        self._pool.end()

    def terminate(self) -> None:
        """Ends the busy actors, and keeps the idle actors for the next simulation."""
        self._actors[:] = self._pool.end()

    def _start_worker(self) -> Any:
        kind: Any = Worker
        return kind.options(**self.client_resources).remote()


def is_alive(actor: Any) -> bool:
    """Returns True if an actor still answers."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=SECONDS_TO_ANSWER)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return False
    return True


@contextmanager
def kept_workers(actors: list[Any], most: int, patience: float) -> Iterator[Callable[[], None]]:
    """Replaces Flower's Ray backend by `KeptWorkers` while the block runs.

    Flower has no option for another backend, so the class is replaced inside Flower's module.

    Args:
        actors: Actors that earlier simulations left. Simulations inside the block update the list
            `actors`.
        most: Largest number of actors.
        patience: Longest time that an actor may take for one message, in seconds.

    Yields:
        A function that ends the busy actors. The server calls the yielded function when it needs no
        more replies.
    """
    theirs, made = raybackend.RayBackend, list[KeptWorkers]()

    def ours(backend_config: BackendConfig) -> KeptWorkers:
        made.append(KeptWorkers(actors, most, patience, backend_config))
        return made[-1]

    def end() -> None:
        for backend in made:
            backend.end()

    raybackend.RayBackend = ours  # type: ignore[assignment, misc]
    try:
        yield end
    finally:
        raybackend.RayBackend = theirs  # type: ignore[misc]
