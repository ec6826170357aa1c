"""Finds public methods that no run ever calls, although their author may expect it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator


def uncalled(kind: type[object], base: type[object], called: Collection[str]) -> list[str]:
    """Returns the public methods of a class that neither a run nor the class itself calls.

    Args:
        kind: The class of a strategy.
        base: The contract that it derives from.
        called: The methods that a run calls.

    Returns:
        The names of the methods, in the order of the source. A method that overrides one of a
        library's class between the two is omitted: that class may call it.

    Example:
        >>> from threading import Thread
        >>> class Mine(Thread):
        ...     def run(self): return 1
        ...     def on_round_end(self): return 2
        >>> uncalled(Mine, Thread, ["run"])
        ['on_round_end']
    """
    package = base.__module__.partition(".")[0]
    own = [c for c in kind.__mro__ if c.__module__.partition(".")[0] != package and c is not object]
    inherited = {name for c in kind.__mro__ if c not in own for name in vars(c)}
    used = {name for c in own for name in _attributes(c)}
    return [
        name
        for c in own
        for name, value in vars(c).items()
        if callable(value) and not name.startswith("_")
        if name not in used and name not in called and name not in inherited
    ]


def _attributes(kind: type[object]) -> Iterator[str]:
    """Yields the names of attributes, those behind a dot, in the source of a class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return
    yield from (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
