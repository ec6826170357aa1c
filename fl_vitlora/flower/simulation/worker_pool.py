"""The worker processes of a simulation: who is at work, and who takes the place of the dead.

A worker is handed a bundle when it has none; those who wait to hand out the next are more than the
workers, so that it need not wait for it. No bundle lies ready at a worker: one that is slow would
keep it from those that are idle, and Ray cannot take it back from there. When a worker dies, or
takes too long and is ended, another is started at once, whose time begins when it is up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

T = TypeVar("T")
SLOTS = 2  # bundles of messages for each worker: one in work, one that is the next for any of them
LOSSES = 3  # of workers over a bundle, until it is taken apart
RAISES = 2  # of an app, until it is believed
SECONDS_TO_END = 60.0
SECONDS_TO_START = 300.0  # for a process and its imports, on a machine that has much else to do
SECONDS_TO_LOOK = 0.5  # whether a worker is up


class WorkerLostError(RuntimeError):
    """A worker died over a bundle, or was ended because it took too long."""


@dataclass
class WorkerState:
    """What is known of a worker.

    Attributes:
        busy: Whether it has a bundle.
        since: When it began with that, or was to start, by `time.monotonic`.
        start: Ray's reference to what it tells when it is up; none, once it is known to be.
    """

    busy: bool = False
    since: float = 0.0
    start: Any = None

    @property
    def is_up(self) -> bool:
        """Tells whether the worker has started; the first time that it has, its time begins."""
        if self.start is not None and ray.wait([self.start], timeout=0, fetch_local=False)[0]:
            self.start, self.since = None, time.monotonic()
        return self.start is None


class WorkerPool:
    """Workers that several threads give bundles to.

    Args:
        workers: Ray's actors.
        start: Makes one more.
        patience: Seconds that a worker that is up may take for one message.
    """

    def __init__(self, workers: Sequence[Any], start: Callable[[], Any], patience: float) -> None:
        self._states = {
            worker: WorkerState(start=worker.__ray_ready__.remote()) for worker in workers
        }
        self._start, self._patience = start, patience
        self._change = threading.Condition()
        self._waiting = 0
        self._ended = False
        self._kept: list[Any] = []

    @property
    def slots(self) -> int:
        """Tells how many bundles can be in work or the next."""
        return SLOTS * len(self._states)

    def ask(self, call: Callable[[Any], Any], messages: int, tried: list[Any]) -> Any:
        """Has a worker do something, and waits for it.

        Args:
            call: Begins it at a worker that it is given; returns Ray's reference to the result.
            messages: How many it is about.
            tried: Workers that it is not asked of while there are others; the one that is chosen is
                added.

        Returns:
            The result.

        Raises:
            WorkerLostError: When the worker was lost over it.
            Exception: What the call itself raised there.
        """
        with self._change:
            self._waiting += 1
        try:
            worker, result = self._hand_out(call, tried)
            return self._wait(worker, result, messages)
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
                self._kept = [worker for worker, state in self._states.items() if not state.busy]
                for worker in self._states.keys() - self._kept:
                    end_process(worker)
                self._change.notify_all()
            self._change.wait_for(lambda: not self._waiting, SECONDS_TO_END)
            return list(self._kept)

    def _hand_out(self, call: Callable[[Any], Any], tried: list[Any]) -> tuple[Any, Any]:
        """Waits until a worker is idle that others have not failed before.

        A retry prefers the newest worker: older ones may have died unnoticed.
        """
        with self._change:
            self._change.wait_for(lambda: self._is_over or self._idle(tried))
            if self._is_over:
                raise RuntimeError("there is no simulation")
            worker = self._idle(tried)[-1 if tried else 0]
            result, state = call(worker), self._states[worker]
            tried.append(worker)
            state.busy, state.since = True, time.monotonic()
            return worker, result

    @property
    def _is_over(self) -> bool:
        return self._ended or not self._states

    def _idle(self, tried: Sequence[Any]) -> list[Any]:
        """Lists who has no bundle, of those that have not been tried, if there are any."""
        others = [worker for worker in self._states if worker not in tried]
        return [worker for worker in others or self._states if not self._states[worker].busy]

    def _wait(self, worker: Any, result: Any, messages: int) -> Any:
        """Waits for a result as long as the worker is alive and not overdue with it."""
        while (seconds := self._seconds_left(worker, messages)) > 0:
            try:
                found = ray.get(result, timeout=min(seconds, threading.TIMEOUT_MAX))
            except GetTimeoutError:
                continue
            except RayTaskError:
                self._take_back(worker)
                raise
            except RayError as error:
                self._replace(worker)
                raise WorkerLostError(
                    "the worker died: killed, crashed or out of memory"
                ) from error
            self._take_back(worker)
            return found
        state = self._replace(worker)
        if state.start is not None:
            raise WorkerLostError(f"a worker did not start within {SECONDS_TO_START:g} s")
        raise WorkerLostError(f"no answer within {messages * self._patience:g} s")

    def _seconds_left(self, worker: Any, messages: int) -> float:
        """Tells how long to wait for a worker before it is looked again, or nothing at its end."""
        with self._change:
            state = self._states[worker]
            if not state.is_up:
                return min(SECONDS_TO_LOOK, state.since + SECONDS_TO_START - time.monotonic())
            return state.since + messages * self._patience - time.monotonic()

    def _take_back(self, worker: Any) -> None:
        """Notes that a worker has done its bundle."""
        with self._change:
            state = self._states[worker]
            state.busy, state.start = False, None
            self._change.notify_all()

    def _replace(self, worker: Any) -> WorkerState:
        """Hires another in the place of one that is lost, and returns what was known of that.

        The lost one is ended, if it lives: not every error of Ray's says that it does not, and it
        would keep its share of the machine from the other.
        """
        with self._change:
            state = self._states.pop(worker)
            end_process(worker)
            try:
                if not self._ended:
                    other = self._start()
                    self._states[other] = WorkerState(start=other.__ray_ready__.remote())
            finally:
                self._change.notify_all()
            return state


def end_process(worker: Any) -> None:
    """Ends a worker, be it alive or not, as far as Ray can."""
    with suppress(Exception):
        ray.kill(worker)


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
