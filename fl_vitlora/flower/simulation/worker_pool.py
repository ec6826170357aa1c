"""The pool of worker processes: it gives work to idle workers and replaces lost workers.

A bundle is a few messages that one worker answers together. A worker gets a bundle only when the
worker is idle. There are more threads than workers, and each thread hands out bundles, so an idle
worker gets the next bundle at once. No bundle waits at a busy worker: a slow worker would delay the
bundle while other workers are idle, and Ray cannot take the bundle back. When a worker dies, or is
killed because it takes too long, a new worker is started at once. The time limit of a bundle begins
only after its worker has started.
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
SLOTS = 2  # bundles per worker: one is being computed, one waits for the next idle worker
LOSSES = 3  # a bundle is split after this number of workers were lost while they computed it
RAISES = 2  # after this number of attempts in which the app raised an error, the error is final
SECONDS_TO_END = 60.0
SECONDS_TO_START = 300.0  # to start a process and to import packages on a busy machine
SECONDS_TO_LOOK = 0.5  # between two checks whether a worker has started


class WorkerLostError(RuntimeError):
    """An error: a worker died while it computed a bundle, or was killed because it was too slow."""


@dataclass
class WorkerState:
    """The state of a worker.

    Attributes:
        busy: True if the worker computes a bundle of messages.
        since: Time in seconds, by `time.monotonic`, at which the worker got its bundle, or at which
            the worker had started if that was later.
        start: Ray's reference that is ready when the worker has started; None after the start.
    """

    busy: bool = False
    since: float = 0.0
    start: Any = None

    @property
    def is_up(self) -> bool:
        """Returns True if the worker has started. The time limit begins at the first True."""
        if self.start is not None and ray.wait([self.start], timeout=0, fetch_local=False)[0]:
            self.start, self.since = None, time.monotonic()
        return self.start is None


class WorkerPool:
    """A pool of workers to which several threads give bundles of messages.

    Args:
        workers: The Ray actors that work at the beginning.
        start: A function that starts one more actor.
        patience: Longest time that a started worker may take for one message, in seconds.
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
        """Returns how many bundles may be computed, or wait for a worker, at the same time."""
        return SLOTS * len(self._states)

    def ask(self, call: Callable[[Any], Any], messages: int, tried: list[Any]) -> Any:
        """Lets an idle worker answer a bundle of messages, and waits for the result.

        Args:
            call: A function that takes a worker, starts the work there, and returns Ray's reference
                to the result.
            messages: Number of messages in the bundle. The time limit is proportional to the number
                of messages.
            tried: Workers that already tried this bundle. These workers are chosen only if there
                are no other workers. The chosen worker is added to the list `tried`.

        Returns:
            The result that `call` computed in the worker.

        Raises:
            WorkerLostError: If the worker was lost during the call.
            Exception: If the call raised an error in the worker; this is the same error.
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
        """Kills the busy workers; returns the idle workers when no thread waits for a worker.

        A second call returns the same workers as the first call.
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
        """Waits for an idle worker that was not tried before, and starts the call on this worker.

        A retry prefers the newest worker: older workers may have died unnoticed.

        Returns:
            The worker, and Ray's reference to the result.
        """
        with self._change:
            self._change.wait_for(lambda: self._is_over or self._idle(tried))
            if self._is_over:
                raise RuntimeError("the simulation has ended, so no worker accepts more messages")
            worker = self._idle(tried)[-1 if tried else 0]
            result, state = call(worker), self._states[worker]
            tried.append(worker)
            state.busy, state.since = True, time.monotonic()
            return worker, result

    @property
    def _is_over(self) -> bool:
        return self._ended or not self._states

    def _idle(self, tried: Sequence[Any]) -> list[Any]:
        """Returns the idle workers that were not tried; if all were tried, all idle workers."""
        others = [worker for worker in self._states if worker not in tried]
        return [worker for worker in others or self._states if not self._states[worker].busy]

    def _wait(self, worker: Any, result: Any, messages: int) -> Any:
        """Waits for the result of a worker while the worker lives and is within its time limit.

        Raises:
            WorkerLostError: If the worker died, did not start, or exceeded its time limit.
            RayTaskError: If the call raised an error in the worker.
        """
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
                    "the worker died: it was killed, crashed or ran out of memory"
                ) from error
            self._take_back(worker)
            return found
        state = self._replace(worker)
        if state.start is not None:
            raise WorkerLostError(f"a worker did not start within {SECONDS_TO_START:g} s")
        raise WorkerLostError(f"a worker sent no answer within {messages * self._patience:g} s")

    def _seconds_left(self, worker: Any, messages: int) -> float:
        """Returns the seconds to wait before the next check; 0 or less after the time limit."""
        with self._change:
            state = self._states[worker]
            if not state.is_up:
                return min(SECONDS_TO_LOOK, state.since + SECONDS_TO_START - time.monotonic())
            return state.since + messages * self._patience - time.monotonic()

    def _take_back(self, worker: Any) -> None:
        """Marks a worker as idle after it has finished its bundle."""
        with self._change:
            state = self._states[worker]
            state.busy, state.start = False, None
            self._change.notify_all()

    def _replace(self, worker: Any) -> WorkerState:
        """Starts a new worker in place of a lost worker, and returns the state of the lost worker.

        This method always kills the lost worker. After some errors of Ray, a lost worker is still
        alive and would occupy the CPU core or the share of a GPU that the new worker needs.
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
    """Kills a worker if it is alive. Errors of Ray are ignored."""
    with suppress(Exception):
        ray.kill(worker)


def persist(bundle: Sequence[T], ask: Callable[[Sequence[T]], list[Any]]) -> tuple[list[Any], bool]:
    """Asks for the answers to a bundle, and repeats the bundle if a worker or an app fails.

    The cause of a failure may be temporary. Therefore the whole bundle is repeated: once if an app
    raised an error, twice if a worker was lost. A run with a temporary fault thus gives the same
    bits as a run without the fault. If three workers were lost while they computed a bundle, the
    messages of the bundle are answered one by one. In this way only the clients that cause the loss
    of workers fail. However, a client that trains alone gets slightly different rounding errors
    than a client that trains in a batch.

    Args:
        bundle: The messages, which one worker answers together.
        ask: A function that returns an answer or an error for each message. The function raises
            `WorkerLostError` or Ray's error if a worker failed with the whole bundle.

    Returns:
        First, the answer or the error for each message. Second, True if the bundle was split into
        single messages.

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
    return [answer for message in bundle for answer in _answers([message], ask)], True


def _answers(bundle: Sequence[T], ask: Callable[[Sequence[T]], list[Any]]) -> list[Any]:
    """Returns the answers of `ask`.

    If the whole bundle fails, the error is the answer to each message.
    """
    try:
        return ask(bundle)
    except (WorkerLostError, RayTaskError) as error:
        return [error] * len(bundle)
