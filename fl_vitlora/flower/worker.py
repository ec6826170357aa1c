"""The process that works for clients: a Ray actor that is handed one message or several."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException

from fl_vitlora.flower.meeting import in_turns

Answer = tuple[Message, Context]


@ray.remote
class Worker:
    """Runs the app of simulated clients."""

    def __init__(self) -> None:
        import fl_vitlora.flower.warm_up  # noqa: F401 - made already, where this project started Ray

    def process(self) -> int:
        """Returns the number of its process."""
        return os.getpid()

    def answer(
        self,
        app_fn: Callable[[], ClientApp],
        messages: Sequence[Message],
        contexts: Sequence[Context],
    ) -> list[Answer | ClientAppException]:
        """Answers messages, each to another client, with what these remember.

        Args:
            app_fn: Makes the app.
            messages: To answer.
            contexts: Of their clients.

        Returns:
            Of each its reply and the context it leaves, or what the app raised.
        """
        app = app_fn()
        calls = [
            functools.partial(_answered, app, message, context)
            for message, context in zip(messages, contexts, strict=True)
        ]
        return [
            ClientAppException(str(outcome)) if isinstance(outcome, Exception) else outcome
            for outcome in in_turns(calls)
        ]


def _answered(app: ClientApp, message: Message, context: Context) -> Answer:
    return app(message=message, context=context), context
