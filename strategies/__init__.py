"""Aggregation strategies, one a file; drop yours in and run it by its file's name.

A file holds one class: a subclass of `fl_vitlora.strategy.Strategy`, or of Flower's
`flwr.serverapp.strategy.Strategy`. One that lives elsewhere is named as ``package.module:Class``.
The files here, and the modules so named, are the only code that a run imports on a user's word.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import from_mapping
from fl_vitlora.errors import UserError, unknown

if TYPE_CHECKING:
    from fl_vitlora.flower.aggregators import AnyStrategy

# What Flower's strategies are told unless the user says otherwise: the server loop chooses the
# participants and evaluates, so a strategy trains on all that it is shown.
FLOWER_DEFAULTS: Mapping[str, Any] = {
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 0,
    "min_available_nodes": 1,
}


def available() -> list[str]:
    """Names all files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, options: Mapping[str, Any]) -> AnyStrategy:
    """Makes a strategy.

    Args:
        name: A file of this folder without its ending, or ``package.module:Class``.
        options: Its hyper-parameters.

    Returns:
        An instance.

    Raises:
        UserError: When there is no such strategy, or it has no such hyper-parameter.

    Example:
        >>> load("fedprox", {"mu": "1e-1"})
        FedProx(mu=0.1)
    """
    kind = _named_class(name) if ":" in name else _class_in_file(name)
    if dataclasses.is_dataclass(kind):
        strategy: AnyStrategy = from_mapping(kind, options, "strategy")  # type: ignore[assignment]
        return strategy
    return _make_flower(kind, name, options)


def _class_in_file(name: str) -> type[Any]:
    """Finds the one strategy that a file of this folder defines."""
    if name not in available():
        raise unknown("strategy", name, available())
    module = _import(f"{__name__}.{name}", name)
    found = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and _is_strategy(kind)
    ]
    if len(found) != 1:
        raise UserError(
            f"strategies/{name}.py: expected one class derived from fl_vitlora.strategy.Strategy "
            f"or flwr.serverapp.strategy.Strategy, found {[kind.__name__ for kind in found]}"
        )
    return found[0]


def _named_class(name: str) -> type[Any]:
    """Imports ``package.module:Class``."""
    module_name, _, class_name = name.partition(":")
    module = _import(module_name, name)
    kinds = {
        n: kind for n, kind in vars(module).items() if inspect.isclass(kind) and _is_strategy(kind)
    }
    if class_name not in kinds:
        raise unknown(f"strategy of {module_name}", class_name, kinds)
    return kinds[class_name]


def _import(module: str, name: str) -> Any:
    import fl_vitlora.flower  # switches telemetry off before a strategy imports Flower

    del fl_vitlora
    try:
        return importlib.import_module(module)
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"strategy {name!r} cannot be imported: {cause}") from error


def _is_strategy(kind: type[Any]) -> bool:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fl_vitlora.strategy import Strategy

    return issubclass(kind, Strategy | FlowerStrategy) and not inspect.isabstract(kind)


def _make_flower(kind: type[Any], name: str, options: Mapping[str, Any]) -> AnyStrategy:
    """Makes an instance of a Flower strategy, which has a constructor of its own."""
    parameters = inspect.signature(kind).parameters
    if "strategy" in parameters:
        raise UserError(f"strategy {name} wraps another strategy; wrappers do not run yet")
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise unknown(f"parameter of {name}", option, parameters)
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in options
    ]
    if needed:
        raise UserError(f"strategy {name} needs a value: --set strategy.{needed[0]}=VALUE")
    defaults = {key: value for key, value in FLOWER_DEFAULTS.items() if key in parameters}
    try:
        strategy: AnyStrategy = kind(**{**defaults, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"strategy {name}: {error}") from None
    return strategy
