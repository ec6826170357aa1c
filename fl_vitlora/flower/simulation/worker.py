"""The worker process: a Ray actor that answers messages in place of simulated clients.

One call answers either a single message or several messages to different clients.
"""

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
    """An error that a client's app raised.

    The text of the error is the stack trace of the app's exception.
    """


@ray.remote
class Worker:
    """A Ray actor that runs the app of simulated clients."""

    def __init__(self) -> None:
        import fl_vitlora.flower.simulation.warm_up  # noqa: F401 - does nothing if already imported

    def process(self) -> int:
        """Returns the process id of this worker."""
        return os.getpid()

    def answer(
        self,
        app_fn: Callable[[], ClientApp],
        messages: Sequence[Message],
        contexts: Sequence[Context],
    ) -> list[Answer | AppError]:
        """Answers messages to different clients.

        Args:
            app_fn: A function that makes the client app.
            messages: The messages to answer, at most one for each client.
            contexts: The stored states of these clients, in the same order.

        Returns:
            One entry for each message: the reply and the client's new context, or an `AppError` if
            the app raised an exception.
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
    """Returns the stack trace of an exception as Python prints it."""
    return "".join(traceback.format_exception(error)).rstrip()


def _answered(app: ClientApp, message: Message, context: Context) -> Answer:
    """Returns the app's reply to a message, and the context after the app has changed it."""
    return app(message=message, context=context), context
