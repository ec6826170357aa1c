"""Optional arguments: a strategy's method gets such an argument only if it declares the argument.

A strategy's method must have the arguments that `fl_vitlora.strategy` lists. Some strategies need
more data: for example, the number of the round in `aggregate`, or the state in `plan`. The methods
of such strategies declare a further argument of a known name, and the caller passes its value.
Methods that do not declare such an argument are called without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Returned = TypeVar("Returned")

OFFERED = {"plan": ("state", "client"), "aggregate": ("context",)}
"""For each method that has optional arguments, their names."""


def wants(method: Callable[..., object], argument: str) -> bool:
    """Returns True if a method declares an argument of this name.

    An argument ``**rest``, which accepts every name, does not count.

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
    """Calls a method with the required arguments, and the optional arguments that it declares.

    Args:
        method: A method of a strategy.
        given: The values of the arguments that this method has in every strategy.
        offered: The values of all optional arguments, by name.

    Returns:
        The value that the method returns.

    Example:
        >>> call(lambda server_round, *, state: (server_round, state), 3, state="S", client=7)
        (3, 'S')
    """
    named = {name: value for name, value in offered.items() if wants(method, name)}
    return method(*given, **named)
