"""The process that works for clients: a Ray actor that is handed one message or several."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Sequence

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_vitlora.training.rendezvous import in_turns

Answer = tuple[Message, Context]


class AppError(RuntimeError):
    """What a client's app raised, told by the trace that Python shows of it."""


@ray.remote
class Worker:
    """Runs the app of simulated clients."""

    def __init__(self) -> None:
        import fl_vitlora.flower.simulation.warm_up  # noqa: F401 - a no-op if Ray preloaded it

    def process(self) -> int:
        """Returns the number of its process."""
        return os.getpid()

    def answer(
        self,
        app_fn: Callable[[], ClientApp],
        messages: Sequence[Message],
        contexts: Sequence[Context],
    ) -> list[Answer | AppError]:
        """Answers messages, each to another client, with what these remember.

        Args:
            app_fn: Makes the app.
            messages: To answer.
            contexts: Of their clients.

        Returns:
            Of each its reply and the context it leaves, or the trace of what the app raised.
        """
        app = app_fn()
        calls = [
            functools.partial(_answered, app, message, context)
            for message, context in zip(messages, contexts, strict=True)
        ]
        return [
            AppError(trace_of(outcome)) if isinstance(outcome, Exception) else outcome
            for outcome in in_turns(calls)
        ]


def trace_of(error: BaseException) -> str:
    """Writes an exception as Python shows it, with the lines that it came from."""
    return "".join(traceback.format_exception(error)).rstrip()


def _answered(app: ClientApp, message: Message, context: Context) -> Answer:
    return app(message=message, context=context), context
