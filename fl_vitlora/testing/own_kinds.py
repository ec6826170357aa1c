"""Finds out whether an author's Python file defines a strategy, an attack or other code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.part import Part
from fl_vitlora.strategy import Strategy
from fl_vitlora.testing.own_file import module_in_file

FLOWER = "flwr.serverapp.strategy"


def is_strategy(kind: type) -> bool:
    """Returns True for a strategy of this project or of Flower."""
    flowers = (base for base in kind.__mro__ if base.__module__.startswith(FLOWER))
    return issubclass(kind, Strategy) or any(base.__name__ == "Strategy" for base in flowers)


KINDS: Mapping[str, Callable[[type], bool]] = {
    "strategy": is_strategy,
    "method": lambda kind: issubclass(kind, Part),
    "attack": lambda kind: issubclass(kind, Attack),
    "predictor": lambda kind: hasattr(kind, "adapts"),
    "observer": lambda kind: hasattr(kind, "observe"),
}


def kind_in_file(name: str, flag: str) -> tuple[str, str]:
    """Imports a Python file, and returns the kind and the name of the one class to check.

    Args:
        name: The path of the file.
        flag: The name of the flag or command that names the file, for error messages.

    Returns:
        A pair: a key of `KINDS`, and the name of the class as ``module:Class``.

    Raises:
        UserError: If the file cannot be imported, or does not define exactly one such class.
    """
    module = module_in_file(name, flag)
    found = [
        (kind, f"{module.__name__}:{own}")
        for own, thing in vars(module).items()
        if inspect.isclass(thing) and thing.__module__ == module.__name__
        for kind in [next((kind for kind, fits in KINDS.items() if fits(thing)), "")]
        if kind
    ]
    if len(found) != 1:
        told = ", ".join(f"{own.partition(':')[2]} ({kind})" for kind, own in found) or "none"
        raise UserError(
            f"{name}: expected one class that is a strategy, a part of a method, an attack, a "
            f"predictor or an observer in this file, found {told}"
        )
    return found[0]
