"""The worker processes of a simulation: who has what in hand, and who takes the place of the dead.

A worker is handed its next bundle while it works on one, so that it need not wait for it. When it
dies, or takes too long and is ended, another is hired at once, whose time begins when it is up. The
bundles of the lost one are lost, but only the one it worked on can have been the cause; the other
is handed out again.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

T = TypeVar("T")
SLOTS = 2  # bundles of messages that a worker has at once: one in work, one that lies ready
LOSSES = 3  # of workers over a bundle, until it is taken apart
RAISES = 2  # of an app, until it is believed
SECONDS_TO_END = 60.0
SECONDS_TO_START = 300.0  # for a process and its imports, on a machine that has much else to do
SECONDS_TO_LOOK = 0.5  # whether a worker is up


class WorkerLostError(RuntimeError):
    """A worker died over a bundle, or was ended because it took too long."""


@dataclass
class Hand:
    """What a worker has in hand.

    Attributes:
        bundles: Numbers; the first is in work.
        since: When it began with that, or was to start, by `time.monotonic`.
        start: Ray's reference to what it tells when it is up; none, once it is known to be.
    """

    bundles: list[int] = field(default_factory=list)
    since: float = 0.0
    start: Any = None

    @property
    def is_up(self) -> bool:
        """Tells whether the worker has started; the first time that it has, its time begins."""
        if self.start is not None and ray.wait([self.start], timeout=0, fetch_local=False)[0]:
            self.start, self.since = None, time.monotonic()
        return self.start is None


class Crew:
    """Workers that several threads hand bundles to.

    Args:
        workers: Ray's actors.
        hire: Makes one more.
        patience: Seconds that a worker that is up may take for one message.
    """

    def __init__(self, workers: Sequence[Any], hire: Callable[[], Any], patience: float) -> None:
        self._hands = {worker: Hand(start=worker.__ray_ready__.remote()) for worker in workers}
        self._hire, self._patience = hire, patience
        self._culprits: dict[Any, int] = {}  # of each that was lost, the bundle it worked on
        self._numbers = itertools.count()
        self._change = threading.Condition()
        self._waiting = 0
        self._ended = False
        self._kept: list[Any] = []

    @property
    def slots(self) -> int:
        """Tells how many bundles can be in hand."""
        return SLOTS * len(self._hands)

    def ask(self, call: Callable[[Any], Any], messages: int, tried: list[Any]) -> Any:
        """Has a worker do something, and waits for it.

        Args:
            call: Begins it at a worker that it is given; returns Ray's reference to the result.
            messages: How many it is about.
            tried: Workers that others are preferred to; the one that is chosen is added.

        Returns:
            The result.

        Raises:
            WorkerLostError: When the worker was lost over it.
            Exception: What the call itself raised there.
        """
        with self._change:
            self._waiting += 1
        try:
            while True:
                worker, number, result = self._hand_out(call, tried)
                try:
                    return self._wait(worker, number, result, messages)
                except WorkerLostError:
                    if self._is_to_blame(worker, number):
                        raise
        finally:
            with self._change:
                self._waiting -= 1
                self._change.notify_all()

    def end(self) -> list[Any]:
        """Ends all who are busy, waits until nobody waits for a worker, and returns the others.

        Whoever calls it again is told the same.
        """
        with self._change:
            if not self._ended:
                self._ended = True
                self._kept = [worker for worker, hand in self._hands.items() if not hand.bundles]
                for worker in self._hands.keys() - self._kept:
                    end_process(worker)
            self._change.wait_for(lambda: not self._waiting, SECONDS_TO_END)
            return list(self._kept)

    def _hand_out(self, call: Callable[[Any], Any], tried: list[Any]) -> tuple[Any, int, Any]:
        with self._change:
            if self._ended or not self._hands:
                raise RuntimeError("there is no simulation")
            others = {w: hand for w, hand in self._hands.items() if w not in tried}
            worker = least_loaded({w: h.bundles for w, h in (others or self._hands).items()})
            tried.append(worker)
            result, number, hand = call(worker), next(self._numbers), self._hands[worker]
            if not hand.bundles:
                hand.since = time.monotonic()
            hand.bundles.append(number)
            return worker, number, result

    def _wait(self, worker: Any, number: int, result: Any, messages: int) -> Any:
        """Waits for a result as long as the worker is alive and not overdue with it."""
        while (seconds := self._seconds_left(worker, number, messages)) > 0:
            try:
                found = ray.get(result, timeout=min(seconds, threading.TIMEOUT_MAX))
            except GetTimeoutError:
                continue
            except RayTaskError:
                self._take_back(worker, number)
                raise
            except RayError as error:
                self._replace(worker)
                raise WorkerLostError(
                    "the worker died: killed, crashed or out of memory"
                ) from error
            self._take_back(worker, number)
            return found
        hand = self._replace(worker)
        if hand is not None and hand.start is not None:
            raise WorkerLostError(f"a worker did not start within {SECONDS_TO_START:g} s")
        raise WorkerLostError(f"no answer within {messages * self._patience:g} s")

    def _seconds_left(self, worker: Any, number: int, messages: int) -> float:
        """Tells how long to wait for a bundle before it is looked again, or nothing at its end."""
        with self._change:
            hand = self._hands.get(worker)
            if hand is None or hand.bundles[0] != number:
                return self._patience
            if not hand.is_up:
                return min(SECONDS_TO_LOOK, hand.since + SECONDS_TO_START - time.monotonic())
            return hand.since + messages * self._patience - time.monotonic()

    def _take_back(self, worker: Any, number: int) -> None:
        """Notes that a bundle is done; the worker has begun with the next."""
        with self._change:
            hand = self._hands.get(worker, Hand([number]))
            hand.bundles.remove(number)
            hand.since, hand.start = time.monotonic(), None

    def _replace(self, worker: Any) -> Hand | None:
        """Hires another in the place of one that is lost, whoever notices it first.

        The lost one is ended, if it lives: not every error of Ray's says that it does not, and it
        would keep its share of the machine from the other.

        Returns:
            What it had in hand, for who noticed it first.
        """
        with self._change:
            hand = self._hands.pop(worker, None)
            if hand is None:
                return None
            end_process(worker)
            self._culprits[worker] = hand.bundles[0]
            if not self._ended:
                other = self._hire()
                self._hands[other] = Hand(start=other.__ray_ready__.remote())
            return hand

    def _is_to_blame(self, worker: Any, number: int) -> bool:
        """Tells whether a lost worker had this bundle in work, so that it may be the cause."""
        with self._change:
            return self._ended or self._culprits[worker] == number


def end_process(worker: Any) -> None:
    """Ends a worker, be it alive or not, as far as Ray can."""
    with suppress(Exception):
        ray.kill(worker)


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


def persist(bundle: Sequence[T], ask: Callable[[Sequence[T]], list[Any]]) -> tuple[list[Any], bool]:
    """Has a bundle answered though workers die and apps raise, which may be a passing trouble.

    All of it is repeated, once where an app raised and twice where workers were lost, so that what
    passes leaves the same bits as if nothing had been. A bundle that three workers were lost over
    is then taken apart, and whoever answers alone is saved; but who trains alone rounds otherwise
    than in a batch.

    Args:
        bundle: Of messages.
        ask: Returns of each its answer, or what was raised instead; raises `WorkerLostError`, or
            Ray's error where a worker failed over the whole bundle.

    Returns:
        The answers, errors where there is none; and whether the bundle was taken apart.

    Example:
        >>> def ask(bundle):
        ...     if "bad" in bundle:
        ...         raise WorkerLostError("out of memory")
        ...     return [text.upper() for text in bundle]
        >>> persist(["a", "bad", "b"], ask)
        (['A', WorkerLostError('out of memory'), 'B'], True)
    """
    answers: list[Any] = []
    lost = raised = 0
    while lost < LOSSES and raised < RAISES:
        answers = _answers(bundle, ask)
        if not any(isinstance(answer, Exception) for answer in answers):
            return answers, False
        if isinstance(answers[0], WorkerLostError):
            lost += 1
        else:
            raised += 1
    if len(bundle) == 1 or lost < LOSSES:
        return answers, False
    return [answer for one in bundle for answer in _answers([one], ask)], True


def _answers(bundle: Sequence[T], ask: Callable[[Sequence[T]], list[Any]]) -> list[Any]:
    """Asks once; an error over the whole bundle is everybody's answer."""
    try:
        return ask(bundle)
    except (WorkerLostError, RayTaskError) as error:
        return [error] * len(bundle)
