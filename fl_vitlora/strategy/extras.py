"""Optional arguments: a strategy's method receives more if it names it among its arguments.

A method of the contract has arguments that every strategy takes. Some strategies need to know more:
the round in `aggregate`, the state in `plan`. They name it, and the caller hands it over; others
are called as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Returned = TypeVar("Returned")

OFFERED = {"plan": ("state", "client"), "aggregate": ("context",)}
"""The optional arguments by method."""


def wants(method: Callable[..., object], argument: str) -> bool:
    """Returns True if a method names an argument; ``**arguments`` does not count.

    Example:
        >>> wants(lambda server_round, *, state: None, "state"), wants(lambda **rest: None, "state")
        (True, False)
    """
    parameter = inspect.signature(method).parameters.get(argument)
    return parameter is not None and parameter.kind in (
        parameter.KEYWORD_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
    )


def call(method: Callable[..., Returned], *given: object, **offered: Any) -> Returned:
    """Calls a method with what every strategy takes, and with what this one names beside it.

    Args:
        method: A method of a strategy.
        given: The arguments that every strategy takes.
        offered: The optional arguments, by name.

    Example:
        >>> call(lambda server_round, *, state: (server_round, state), 3, state="S", client=7)
        (3, 'S')
    """
    named = {name: value for name, value in offered.items() if wants(method, name)}
    return method(*given, **named)
