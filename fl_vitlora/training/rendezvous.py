"""Calls that go on in turns, and can meet to have their heaviest part done together.

A worker that is handed several messages runs the app for each, in a thread of its own, but never
two at once: a call goes on until it ends or waits for the others. When all that are left wait, what
they brought is done together, and they go on in turns. So an app needs no other form for many
messages than for one, and what calls share needs no locks.
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
    """A call that goes on when it is told to, and stops where it ends or meets others.

    Args:
        function: The function that is called.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._turn, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.together: Together[Any, Any] | None = None  # what it waits for, with what it brought
        self.brought: Any = None
        self.found: Any = None
        self.outcome: T | Exception | None = None
        self._thread.start()

    def go_on(self) -> None:
        """Lets it go on, and returns when it has stopped."""
        self._turn.release()
        self._stopped.acquire()

    def meet(self, together: Together[T, U], brought: T) -> U:
        """Stops until what it and others brought is done; called by the call itself."""
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
        except Exception as error:  # handed to who waits for the outcome
            self.outcome = error
        except BaseException as error:  # an app that exits ends its call, not the worker
            self.outcome = RuntimeError(repr(error))
        finally:
            self._stopped.release()


def meet(together: Together[T, U], brought: T) -> U:
    """Has something done together with what other calls bring; alone, where there are none.

    Args:
        together: Takes what was brought to it, and returns as many results; an exception of it is
            raised in every call.
        brought: The argument that this call brings.

    Returns:
        The result of this one.
    """
    call = _own.get()
    return together([brought])[0] if call is None else call.meet(together, brought)


def in_turns(functions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Calls functions that may meet.

    Args:
        functions: The functions to call, without arguments.

    Returns:
        What each returned, or the exception that it raised.
    """
    calls = [Call(function) for function in functions]
    for call in calls:
        call.go_on()
    while waiting := [call for call in calls if call.together is not None]:
        together = waiting[0].together
        _do_together([call for call in waiting if call.together == together])
    return [cast("T | Exception", call.outcome) for call in calls]


def _do_together(calls: Sequence[Call[Any]]) -> None:
    """Does what some calls brought, and lets each go on."""
    together = cast("Together[Any, Any]", calls[0].together)
    found: Sequence[Any]
    try:
        found = together([call.brought for call in calls])
    except Exception as error:  # raised where it was waited for
        found = [error] * len(calls)
    for call, one in zip(calls, found, strict=True):
        call.together, call.brought, call.found = None, None, one
        call.go_on()
