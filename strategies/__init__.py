"""Aggregation strategies, one per file. The name of a strategy in this folder is its file name.

A file defines one class: a subclass of `fl_vitlora.strategy.Strategy`, or of Flower's
`flwr.serverapp.strategy.Strategy`. The name of a strategy in another place is
``package.module:Class``. A run imports a strategy only from this folder, from Flower, or from a
module that the user names on the command line. A module that only a YAML file or a run folder
names is not imported (`fl_vitlora.config.confirmation`).
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

from fl_vitlora.config import Config
from fl_vitlora.config.confirmation import check_method, check_strategy
from fl_vitlora.config.named_code import cause_of, check_whole, code_named, module_named
from fl_vitlora.config.settings import from_mapping
from fl_vitlora.errors import UserError, shown, unknown

if TYPE_CHECKING:
    from fl_vitlora.flower.strategies.aggregators import AnyStrategy
    from fl_vitlora.flower.strategies.construction import Terms
    from fl_vitlora.testing import Finding

OLDER = "flwr.server.strategy"  # Flower's interface before its Message API
INNERMOST = "flwr.serverapp.strategy:FedAvg"  # the strategy that a wrapper wraps by default


def available() -> list[str]:
    """Returns the names of all strategies in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_for(config: Config, confirmed: Collection[str] = ()) -> AnyStrategy:
    """Creates the strategy of an experiment, as `load` does.

    Args:
        config: The settings of the experiment. The settings may come from a file that someone else
            wrote.
        confirmed: The names of strategies and methods that the user typed on the command line.

    Raises:
        UserError: If the settings name code outside of this project and Flower that the user did
            not type, or if `load` raises an error.
    """
    from fl_vitlora.population.sampling import cohort_size

    check_strategy(config.strategy, confirmed)
    check_method(config.finetuning.method, confirmed)
    return load(
        config.strategy.name,
        config.strategy.options,
        cohort=cohort_size(config.clients, config.fraction),
        clients=config.clients,
    )


def load(
    name: str, options: Mapping[str, Any], *, cohort: int = 1, clients: int = 1
) -> AnyStrategy:
    """Creates a strategy from its name and hyper-parameters.

    Args:
        name: The name of a file in this folder, with or without ``.py``, or
            ``package.module:Class``.
        options: The hyper-parameters of the strategy, by name. Some strategies of Flower are
            wrappers, which add something to another strategy. For a wrapper, the option
            ``strategy`` is the other strategy: its name, or a dictionary with its ``name`` and
            hyper-parameters.
        cohort: The number of clients that take part in a round.
        clients: The number of all clients.

    Returns:
        An instance of the class of the strategy, from this project or from Flower.

    Raises:
        UserError: If the strategy or a hyper-parameter is unknown, or if a value is not valid.

    Example:
        >>> load("fedprox", {"mu": "1e-1"})
        FedProx(mu=0.1)
    """
    from fl_vitlora.flower.strategies.construction import Terms

    return _load(name, options, Terms.of(cohort=cohort, clients=clients))


def check_flower(name: str, options: Mapping[str, Any]) -> tuple[list[Finding], int, list[str]]:
    """Checks that a strategy of Flower has everything that a run needs.

    Args:
        name: The name of the strategy, in a form that `load` accepts.
        options: The hyper-parameters of the strategy, in a form that `load` accepts.

    Returns:
        A triple: one finding for each rule that was tested, the number of all rules, and lines that
        describe the strategy.
    """
    from fl_vitlora.flower.strategies.checking import RULES, flower_findings, flower_understood
    from fl_vitlora.testing.made_up import CLIENTS

    def make() -> Any:
        return load(name, options, cohort=len(CLIENTS), clients=len(CLIENTS))

    return flower_findings(make), len(RULES), [name, *flower_understood(make())]


def _load(name: str, options: Mapping[str, Any], terms: Terms) -> AnyStrategy:
    """Creates a run's strategy, or a strategy inside a wrapper, with the defaults in `terms`."""
    from fl_vitlora.flower.strategies import construction

    kind = _named_class(name) if ":" in name else _class_in_file(name)
    try:
        if dataclasses.is_dataclass(kind):
            return _make_own(kind, options, terms)
        if construction.wraps(kind):
            wrapped = _load_wrapped(options.get("strategy", INNERMOST), terms.within(kind))
            options = {**options, "strategy": wrapped}
        strategy: AnyStrategy = construction.construct(kind, name, options, terms)
    except UserError:
        raise
    except Exception as error:  # raised by the strategy's own code
        cause = error if isinstance(error, TypeError | ValueError) else cause_of(error)
        raise UserError(f"strategy {name}: {' '.join(str(cause).split())}") from error
    return strategy


def _make_own(kind: type[Any], options: Mapping[str, Any], terms: Terms) -> AnyStrategy:
    """Checks a class that derives from this project's `Strategy`, and creates an instance."""
    from fl_vitlora.testing.declared import expect_form

    expect_form(kind)
    own: AnyStrategy = from_mapping(kind, options, terms.path)
    return own


def _load_wrapped(given: Any, terms: Terms) -> AnyStrategy:
    """Creates the strategy inside a wrapper, from its name or from a dictionary with options."""
    from fl_vitlora.strategy import Strategy

    options = {"name": INNERMOST, **given} if isinstance(given, Mapping) else {"name": given}
    name = options.pop("name")
    if not isinstance(name, str):
        raise UserError(f"{terms.path}: expected the name of a strategy, got {shown(name)}")
    strategy = _load(name, options, terms)
    if isinstance(strategy, Strategy):
        raise UserError(
            f"{terms.path}: {name} is a strategy of this project, but Flower's wrappers accept "
            f"only Flower's strategies, for example {INNERMOST}"
        )
    return strategy


def _class_in_file(name: str) -> type[Any]:
    """Returns the strategy class that a file of this folder defines."""
    name = name.removeprefix("./").removeprefix(f"{__name__}/").removesuffix(".py")
    if name not in available():
        raise _unknown(name)
    module = _import(f"{__name__}.{name}", name)
    found = [
        kind
        for kind in vars(module).values()
        if _is_strategy(kind) and kind.__module__ == module.__name__
    ]
    if not found:
        _expect_whole(module, f"{__name__}/{name}.py")
    if len(found) != 1:
        raise UserError(
            f"strategies/{name}.py: expected one class derived from fl_vitlora.strategy.Strategy "
            f"or flwr.serverapp.strategy.Strategy, found {[kind.__name__ for kind in found]}"
        )
    return found[0]


def _named_class(name: str) -> type[Any]:
    """Imports the module of a name ``package.module:Class`` and returns the class."""
    module_name, _, class_name = name.partition(":")
    if module_name.startswith(OLDER):
        raise _older(f"strategy {name}", class_name)
    _expect_whole(_import(module_name, name), module_name, class_name)
    found: type[Any] = code_named(name, "strategy", _is_strategy)
    return found


def _unknown(name: str) -> UserError:
    """Returns the error for an unknown name.

    The error suggests a similar name, of this project or of Flower.
    """
    import fl_vitlora.flower  # switches telemetry off first

    del fl_vitlora
    import flwr.serverapp.strategy as flower

    for known, kind in vars(flower).items():
        if known.lower() == name.lower() and _is_strategy(kind):
            whole = f"{flower.__name__}:{known}"
            return UserError(f"unknown strategy {name!r}; did you mean {whole!r}?")
    return unknown("strategy", name, available())


def _older(what: str, class_name: str) -> UserError:
    """Returns the error for a class of Flower's older interface, with the name of its successor."""
    import fl_vitlora.flower  # switches telemetry off first

    del fl_vitlora
    import flwr.serverapp.strategy as flower

    successor = class_name if class_name in vars(flower) else "Strategy"
    return UserError(
        f"{what} has Flower's older interface {OLDER}, which is not supported because it works on "
        f"lists of NumPy arrays; use its successor {flower.__name__}:{successor}"
    )


def _older_base(kind: type[Any]) -> str | None:
    """Returns the base class from Flower's older interface, or None if there is none."""
    found = (c for c in kind.__mro__[1:] if c.__module__.startswith(OLDER))
    return next((c.__name__ for c in found), None)


def _expect_whole(module: ModuleType, place: str, class_name: str | None = None) -> None:
    """Raises an error if a class is not a strategy and the reason is known.

    Args:
        module: The imported module.
        place: The name of the file or module, for error messages.
        class_name: The name of the class that the user wants, or None for all classes.

    Raises:
        UserError: If a class has Flower's older interface, lacks a method that it needs, or does
            not derive from `Strategy`.
    """
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fl_vitlora.strategy import Strategy

    own = {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
    }
    chosen = [kind for name, kind in own.items() if class_name in (None, name)]
    for kind in chosen:
        if base := _older_base(kind):
            raise _older(f"{place}: class {kind.__name__}", base)
    for kind in chosen:
        check_whole(kind, place)
    if chosen and not issubclass(chosen[0], Strategy | FlowerStrategy):
        raise UserError(
            f"{place}: class {chosen[0].__name__} is not derived from "
            "fl_vitlora.strategy.Strategy or flwr.serverapp.strategy.Strategy"
        )


def _import(module: str, name: str) -> ModuleType:
    import fl_vitlora.flower  # switches telemetry off before a strategy imports Flower

    del fl_vitlora
    try:
        return module_named(module, f"strategy {name!r}")
    except UserError as error:
        cause = error.__cause__
        form = "; write @dataclass(frozen=True, kw_only=True)" if "dataclass" in str(cause) else ""
        raise UserError(f"{error}{form}") from cause


def _is_strategy(kind: object) -> TypeGuard[type[Any]]:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fl_vitlora.strategy import Strategy

    return (
        inspect.isclass(kind)
        and issubclass(kind, Strategy | FlowerStrategy)
        and not inspect.isabstract(kind)
    )
