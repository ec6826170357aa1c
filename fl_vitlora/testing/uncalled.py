"""Finds public methods of a class that no run ever calls, although the author may expect a call."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator


def uncalled(kind: type[object], base: type[object], called: Collection[str]) -> list[str]:
    """Returns the public methods of a class that neither a run nor the class itself calls.

    Args:
        kind: The class whose methods are looked for, for example a strategy.
        base: The library's base class, from which `kind` derives.
        called: The names of the methods that a run calls.

    Returns:
        The names of the methods, in the order of the source code. A method that overrides a method
        of the library's classes is left out, because the library may call this method.

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
    """Yields the names that follow a dot in the source code of a class, such as b in ``a.b``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return
    yield from (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
