"""Flower's Ray backend with workers that outlive a simulation.

At the end of every simulation Flower ends its actors and Ray itself, and has no switch for it. Here
both stay, so that the next simulation finds worker processes that have made their imports. Of
those that die in a simulation Flower keeps the dead; here a `WorkerPool` replaces them.

A simulation can end while actors are at work: it was broken off, or nobody waits for them any more.
Whoever then asks Ray for a result after Ray was shut down ends the whole process, with code 1 and
one line; so nobody is left to ask. Flower ends its backend only after all have come who wait for an
actor; who is at work for nobody is ended before that, or it would hold up the end of the run.
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
    """Takes the actors that an earlier simulation left, and leaves them to the next.

    Args:
        actors: Those that were left; at the end, those that are left now.
        most: How many there may be; fewer where Ray has not the resources.
        patience: Seconds that an actor may take for one message.
        backend_config: What Flower configures a backend with.
    """

    def __init__(
        self, actors: list[Any], most: int, patience: float, backend_config: BackendConfig
    ) -> None:
        super().__init__(backend_config)
        self._actors, self._most, self._patience = actors, most, patience
        self._pool = WorkerPool([], self._start_worker, patience)

    @property
    def num_workers(self) -> int:
        """Tells how many threads are to hand out bundles."""
        return self._pool.slots

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Takes first the actors that are there and alive, then makes new ones."""
        actors = [actor for actor in self._actors if is_alive(actor)]
        most = min(self._most, pool_size_from_resources(self.client_resources))
        actors += [self._start_worker() for _ in range(most - len(actors))]
        self._actors[:] = actors
        self._pool = WorkerPool(actors, self._start_worker, self._patience)
        self.app_fn = app_fn

    def answer(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> tuple[list[Answer | Exception], bool]:
        """Has one actor answer some messages; several threads call it at once.

        Args:
            messages: To other clients each.
            contexts: Of these clients.

        Returns:
            Of each its reply and the context it leaves; or what the app raised, or that the actor
            was lost, each time. And whether each was answered alone at last, after such losses.
        """
        tried: list[Any] = []

        def ask(bundle: Sequence[tuple[Message, Context]]) -> list[Answer | AppError]:
            def call(actor: Any) -> Any:
                return actor.answer.remote(self.app_fn, *map(list, zip(*bundle, strict=True)))

            return list(self._pool.ask(call, len(bundle), tried))

        return persist(list(zip(messages, contexts, strict=True)), ask)

    def process_message(self, message: Message, context: Context) -> Answer:
        """Does the same for one message, as Flower asks for it."""
        (answer,), _ = self.answer([message], [context])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Ends what is busy, and waits until nobody waits for an actor."""
        self._pool.end()

    def terminate(self) -> None:
        """Does the same, and leaves what was idle to the next simulation."""
        self._actors[:] = self._pool.end()

    def _start_worker(self) -> Any:
        kind: Any = Worker
        return kind.options(**self.client_resources).remote()


def is_alive(actor: Any) -> bool:
    """Asks an actor whether it still answers."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=SECONDS_TO_ANSWER)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return False
    return True


@contextmanager
def kept_workers(actors: list[Any], most: int, patience: float) -> Iterator[Callable[[], None]]:
    """Lets Flower, which names its backend in the code, find this one in that place.

    Args:
        actors: Of the simulations before; it is brought up to date by the simulations inside.
        most: How many there may be.
        patience: Seconds that an actor may take for one message.

    Yields:
        What ends the simulation inside, for whoever knows that nobody waits for an answer any more.
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
