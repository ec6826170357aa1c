"""The strategy that a run really uses: its class and parameters, read from the instance.

`experiment.run` gets an instance, which may differ from the strategy that the configuration names.
The result files of a run describe the instance. If the configuration names another strategy or
other parameters than the instance has, the configuration is corrected before the run begins.
Therefore `config.yaml` always names the strategy that ran.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fl_vitlora.config import Config, StrategyConfig
from fl_vitlora.config.settings import from_mapping
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.flower.strategies.construction import (
    ACCOUNTANT,
    TARGET_DELTA,
    WRAPPED,
    Terms,
    construct,
)
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.strategy import Strategy

FOLDER = "strategies"  # `strategy.name` omits this folder


def class_path(strategy: object) -> str:
    """Returns the class of a strategy as ``package.module:Class``.

    Example:
        >>> from strategies.fedavg import FedAvg
        >>> class_path(FedAvg())
        'strategies.fedavg:FedAvg'
    """
    kind = type(strategy)
    return f"{kind.__module__}:{kind.__qualname__}"


def setting_of(strategy: object) -> str:
    """Returns the setting `strategy.name` that selects a strategy: a file name or a class path.

    Example:
        >>> from strategies.fedavg import FedAvg
        >>> setting_of(FedAvg())
        'fedavg'
    """
    kind = type(strategy)
    package, _, file = kind.__module__.rpartition(".")
    if package == FOLDER:
        return file
    if getattr(flower_strategies, kind.__qualname__, None) is kind:
        return f"{flower_strategies.__name__}:{kind.__qualname__}"
    return class_path(strategy)


def parameters(strategy: AnyStrategy) -> dict[str, Any]:
    """Returns the hyper-parameters of a strategy, read from the instance.

    Args:
        strategy: The strategy before its first round, from this project or from Flower.

    Returns:
        The plain values of the parameters, by name. A strategy inside a wrapper of Flower becomes a
        mapping of its name and its parameters. A value that YAML cannot hold is replaced by the
        name of its type in brackets. Parameters that are functions are left out.

    Example:
        >>> from strategies.fedprox import FedProx
        >>> parameters(FedProx(mu=0.5))
        {'mu': 0.5}
    """
    if isinstance(strategy, Strategy):
        values = {name: v for name, v in vars(strategy).items() if not name.startswith("_")}
    else:
        known = inspect.signature(type(strategy)).parameters
        values = {name: getattr(strategy, name) for name in known if hasattr(strategy, name)}
        accountant = values.pop(ACCOUNTANT, None)
        if accountant is not None:
            values[TARGET_DELTA] = accountant.config.target_delta
    return {name: _plain(value) for name, value in values.items() if not inspect.isroutine(value)}


def _plain(value: Any) -> Any:
    """Returns a value in types that YAML and JSON have."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Strategy | FlowerStrategy):
        return {"name": setting_of(value), **parameters(value)}
    return f"({type(value).__name__})"


def describe(strategy: AnyStrategy) -> str:
    """Returns the class of a strategy with its parameters, in one line.

    Example:
        >>> from strategies.fedprox import FedProx
        >>> describe(FedProx(mu=0.5))
        'strategies.fedprox:FedProx(mu=0.5)'
    """
    arguments = ", ".join(f"{name}={value!r}" for name, value in parameters(strategy).items())
    return f"{class_path(strategy)}({arguments})"


def told(config: Config, strategy: AnyStrategy) -> Config:
    """Returns a configuration that names the strategy of the run.

    Args:
        config: The configuration of the experiment.
        strategy: The instance that the run uses.

    Returns:
        The same configuration if an instance made from it equals the given instance. If the two
        instances differ, a configuration with the class and the parameters of the given instance.
    """
    terms = Terms.of(cohort=cohort_size(config.clients, config.fraction), clients=config.clients)
    if _makes(config.strategy.name, config.strategy.options, strategy, terms):
        return config
    named = StrategyConfig(name=setting_of(strategy), options=parameters(strategy))
    return dataclasses.replace(config, strategy=named)


def _makes(name: str, options: Mapping[str, Any], strategy: AnyStrategy, terms: Terms) -> bool:
    """Returns True if a name and options make a strategy that equals an instance."""
    kind = type(strategy)
    if not _names(name, kind):
        return False
    try:
        if isinstance(strategy, Strategy):
            return parameters(from_mapping(kind, options)) == parameters(strategy)
        inner = getattr(strategy, WRAPPED, None)
        if inner is not None:
            given = options.get(WRAPPED, {})
            within = dict(given) if isinstance(given, Mapping) else {"name": given}
            inner_name = within.pop("name", "flwr.serverapp.strategy:FedAvg")
            if not _makes(inner_name, within, inner, terms.within(kind)):
                return False
            options = {**options, WRAPPED: inner}
        made = construct(kind, name, options, terms)
    except (UserError, TypeError):
        return False
    return parameters(made) == parameters(strategy)


def _names(name: str, kind: type[Any]) -> bool:
    """Returns True if a strategy's name in a configuration means the class `kind`.

    This function imports no module.
    """
    module, _, wanted = name.partition(":")
    if wanted:
        return getattr(sys.modules.get(module), wanted, None) is kind
    file = module.removeprefix("./").removeprefix(f"{FOLDER}/").removesuffix(".py")
    return kind.__module__ == f"{FOLDER}.{file}"
