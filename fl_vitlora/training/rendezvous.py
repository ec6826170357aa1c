"""Lets several calls run in turns, and computes their most expensive step together.

A worker process that gets several messages calls the client app once for each message. Every call
has its own thread, but two calls never run at the same time: a call runs until it ends, or until it
waits for a computation that several calls need. When every call has ended or is waiting, one
function computes the results of all waiting calls together. After the common computation, the calls
continue in turns. Therefore an app for many messages can be written like an app for one message,
and the data that calls share needs no locks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")
Together = Callable[[list[T]], list[U]]

_own: ContextVar[Call[Any] | None] = ContextVar("call", default=None)


class Call(Generic[T]):
    """A call of a function in a thread that runs only when this call has its turn.

    A turn ends when the function ends, or when the function waits for a common computation.

    Args:
        function: The function that is called.

    Attributes:
        together: The function that computes the results of all waiting calls; None if this call
            does not wait.
        brought: The argument of this call for the function `together`.
        found: The result of `together` for this call, or an exception that is raised in the call.
        outcome: The result of the whole call, or the exception that ended the call.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._turn, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.together: Together[Any, Any] | None = None
        self.brought: Any = None
        self.found: Any = None
        self.outcome: T | Exception | None = None
        self._thread.start()

    def go_on(self) -> None:
        """Gives the call its turn; returns when the call has ended or waits."""
        self._turn.release()
        self._stopped.acquire()

    def meet(self, together: Together[T, U], brought: T) -> U:
        """Waits for a result that is computed together with other calls.

        Only the code of this call may use this method, in its own thread.

        Args:
            together: The function that computes the results of all waiting calls.
            brought: The argument of this call.

        Returns:
            The result for this call.
        """
        self.together, self.brought = together, brought
        self._stopped.release()
        self._turn.acquire()
        found, self.found = self.found, None
        if isinstance(found, Exception):
            raise found
        return cast("U", found)

    def _run(self) -> None:
        self._turn.acquire()
        _own.set(self)
        try:
            self.outcome = self._function()
        except Exception as error:  # `in_turns` returns the error
            self.outcome = error
        except BaseException as error:  # an app that exits ends its own call, not the worker
            self.outcome = RuntimeError(repr(error))
        finally:
            self._stopped.release()


def meet(together: Together[T, U], brought: T) -> U:
    """Computes a result together with the other calls, or alone if there are no other calls.

    Args:
        together: A function that takes a list with the arguments of all waiting calls, and returns
            one result for each argument. If `together` raises an exception, the exception is raised
            in each waiting call.
        brought: The argument of this call.

    Returns:
        The result of this call.
    """
    call = _own.get()
    return together([brought])[0] if call is None else call.meet(together, brought)


def in_turns(functions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Calls functions in turns; the functions may wait for a common computation with `meet`.

    Args:
        functions: The functions to call, without arguments.

    Returns:
        For each function, its result, or the exception that the function raised.
    """
    calls = [Call(function) for function in functions]
    for call in calls:
        call.go_on()
    while waiting := [call for call in calls if call.together is not None]:
        together = waiting[0].together
        _do_together([call for call in waiting if call.together == together])
    return [cast("T | Exception", call.outcome) for call in calls]


def _do_together(calls: Sequence[Call[Any]]) -> None:
    """Computes the results of calls that wait for one function, and lets each call continue."""
    together = cast("Together[Any, Any]", calls[0].together)
    found: Sequence[Any]
    try:
        found = together([call.brought for call in calls])
    except Exception as error:  # `Call.meet` raises the error again
        found = [error] * len(calls)
    for call, one in zip(calls, found, strict=True):
        call.together, call.brought, call.found = None, None, one
        call.go_on()
