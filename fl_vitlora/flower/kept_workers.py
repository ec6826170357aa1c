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
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.server.superlink.fleet.vce.backend.backend import BackendConfig
from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

from fl_vitlora.flower.worker import Answer, Worker

T = TypeVar("T")
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
        self._numbers = itertools.count()
        self._in_hand: dict[Any, list[int]] = {}  # numbers of the bundles that each actor has
        self._ended = False

    @property
    def num_workers(self) -> int:
        """Tells how many bundles the actors can have in hand, as many as threads wait for them."""
        return SLOTS * len(self._in_hand)

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Takes first the actors that are there and alive, then makes new ones."""
        actors = [actor for actor in self._actors if is_alive(actor)]
        most = min(self._most, pool_size_from_resources(self.client_resources))
        kind: Any = Worker
        actors += [
            kind.options(**self.client_resources).remote() for _ in range(most - len(actors))
        ]
        self._actors[:] = actors
        self._in_hand = {actor: [] for actor in actors}
        self.app_fn = app_fn

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
            if self._ended or not self._in_hand:
                raise RuntimeError("there is no simulation")
            number = next(self._numbers)
            actor = least_loaded(self._in_hand)
            self._in_hand[actor].append(number)
        try:
            answers = ray.get(actor.answer.remote(self.app_fn, messages, contexts))
        finally:
            with self._change:
                self._in_hand[actor].remove(number)
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
        with self._change:
            self._ended = True
            busy = {actor for actor, bundles in self._in_hand.items() if bundles}
            for actor in busy:
                ray.kill(actor)
            self._actors[:] = [actor for actor in self._in_hand if actor not in busy]
            self._change.wait_for(lambda: not any(self._in_hand.values()), SECONDS_TO_ANSWER)


def least_loaded(in_hand: Mapping[T, Sequence[int]]) -> T:
    """Chooses who is given the next bundle.

    Bundles come with the largest first. So where all have as many, whoever was given the last one
    has the least to do.

    Args:
        in_hand: The numbers of the bundles that each has.

    Example:
        >>> least_loaded({"a": [0], "b": []}), least_loaded({"a": [0], "b": [1]})
        ('b', 'b')
    """
    return min(in_hand, key=lambda one: (len(in_hand[one]), -max(in_hand[one], default=0)))


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
