"""Flower's Ray backend with workers that outlive a simulation, and never wait for the next message.

At the end of every simulation Flower ends its actors and Ray itself, and has no switch for it. Here
both stay, so that the next simulation finds worker processes that have made their imports. And an
actor is handed its next message while it works on one, so that it need not wait for it.

A simulation can end while actors are at work: it was broken off, or nobody waits for them any more.
Whoever then asks Ray for a result after Ray was shut down ends the whole process, with code 1 and
one line; so nobody is left to ask.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.server.superlink.fleet.vce.backend.backend import BackendConfig
from flwr.simulation.ray_transport.ray_actor import BasicActorPool

from fl_vitlora.flower.worker import Answer, Worker

SECONDS_TO_ANSWER = 60.0
SLOTS = 2  # bundles of messages that an actor has at once: one in work, one that lies ready


class KeptWorkers(raybackend.RayBackend):
    """Takes the actors that an earlier simulation left, and leaves them to the next.

    Args:
        actors: Those that were left; at the end, those that are left now.
        most: How many there may be; fewer where Ray has not the resources.
        backend_config: What Flower configures a backend with.
    """

    def __init__(self, actors: list[Any], most: int, backend_config: BackendConfig) -> None:
        super().__init__(backend_config)
        self._actors, self._most = actors, most
        self._change = threading.Condition()
        self._in_work = 0
        self._ended = False

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Fills the pool: first with the actors that are there and alive, then with new ones.

        An entry is taken out of the pool for each bundle, so an actor has one for each slot.
        """
        pool = BasicActorPool(Worker, self.client_resources, {})  # type: ignore[arg-type]
        pool.pool.extend(actor for actor in self._actors if is_alive(actor))
        pool.num_actors = len(pool.pool)
        pool.add_actors_to_pool(min(self._most, pool.actors_capacity) - pool.num_actors)
        self._actors[:] = pool.pool
        pool.pool, pool.num_actors = SLOTS * pool.pool, SLOTS * pool.num_actors
        self.pool, self.app_fn = pool, app_fn

    def answer(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Answer | ClientAppException]:
        """Has one actor answer some messages; several threads call it at once.

        Args:
            messages: To other clients each.
            contexts: Of these clients.

        Returns:
            Of each its reply and the context it leaves, or what the app raised.

        Raises:
            RayError: When the actor died.
        """
        with self._change:
            if self._ended or self.pool is None:
                raise RuntimeError("there is no simulation")
            actor: Any = self.pool.pool.pop()
            self._in_work += 1
        try:
            answers = ray.get(actor.answer.remote(self.app_fn, messages, contexts))
        finally:
            with self._change:
                self.pool.pool.append(actor)
                self._in_work -= 1
                self._change.notify_all()
        return list(answers)

    def process_message(self, message: Message, context: Context) -> Answer:
        """Does the same for one message, as Flower asks for it."""
        (answer,) = self.answer([message], [context])
        if isinstance(answer, ClientAppException):
            raise answer
        return answer

    def terminate(self) -> None:
        """Keeps what is idle, ends what is busy, and waits until nobody waits for an actor."""
        if self.pool is None:
            return
        with self._change:
            self._ended = True
            idle = {actor for actor in self._actors if self.pool.pool.count(actor) == SLOTS}
            for actor in set(self._actors) - idle:
                ray.kill(actor)
            self._actors[:] = idle
            self._change.wait_for(lambda: not self._in_work, SECONDS_TO_ANSWER)


def is_alive(actor: Any) -> bool:
    """Asks an actor whether it still answers."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=SECONDS_TO_ANSWER)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return False
    return True


@contextmanager
def kept_workers(actors: list[Any], most: int) -> Iterator[None]:
    """Lets Flower, which names its backend in the code, find this one in that place.

    Args:
        actors: Of the simulations before; it is brought up to date by the simulations inside.
        most: How many there may be.
    """
    theirs = raybackend.RayBackend
    raybackend.RayBackend = functools.partial(KeptWorkers, actors, most)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        raybackend.RayBackend = theirs  # type: ignore[misc]
