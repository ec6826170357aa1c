"""Settings that a person must confirm, because their values can run code.

People exchange configurations and run folders, and four settings in such files can run code. A
strategy, a part of a fine-tuning method or a predictor can be named as ``package.module:Class``. A
run imports a class that is named in this way, which runs the code of the class's module. The
operator of a Ray cluster can run code in every program that joins the cluster. So the user must
confirm a value that can run code by typing it on the command line; a value that only a file
contains is refused. Strategies of this project and of Flower, and methods and predictors of this
project, need no confirmation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fl_vitlora.config import Config, StrategyConfig
from fl_vitlora.config.method_names import foreign_parts, parts_of
from fl_vitlora.config.predictor_names import is_foreign
from fl_vitlora.errors import UserError, shown

KNOWN_PACKAGES = ("strategies", "flwr")  # classes of these packages need no confirmation


def check_confirmed(config: Config, confirmed: Collection[str] = ()) -> None:
    """Raises an error if the user has not confirmed the code or the Ray cluster of an experiment.

    Args:
        config: The experiment.
        confirmed: The names of classes and the addresses of Ray clusters that the user typed on the
            command line.

    Raises:
        UserError: If the strategy, the method, the predictor or the cluster needs a confirmation
            and the user has not given it.
    """
    check_strategy(config.strategy, confirmed)
    check_method(config.finetuning.method, confirmed)
    check_predictor(config.evaluation.predictor, confirmed)
    address = config.engine.ray_address
    if address is not None and address not in confirmed:
        raise UserError(
            f"engine.ray_address {shown(address)}: only a file names this Ray cluster, and the "
            "cluster's operator can run code in this program; if you trust the operator, add: "
            f"--ray-address {address}"
        )


def check_strategy(chosen: StrategyConfig, confirmed: Collection[str] = ()) -> None:
    """Raises an error if a strategy, or one that it wraps, is neither known nor confirmed.

    A strategy is known if its code belongs to this project or to Flower.

    Args:
        chosen: The name of the strategy and its parameters, which may name another strategy that
            this one wraps.
        confirmed: The names of strategies that the user typed on the command line.

    Raises:
        UserError: If only a file names a strategy, and the code of this strategy belongs neither to
            this project nor to Flower.

    Example:
        >>> check_strategy(StrategyConfig(name="fedprox"))
        >>> check_strategy(StrategyConfig(name="mine:Mine"), ["mine:Mine"])
    """
    for name in _names(chosen.name, chosen.options):
        if not is_known(name) and name not in confirmed:
            raise UserError(
                f"strategy {shown(name)}: only a file names this code, and it does not belong to "
                f"this project or to Flower; if you trust the code, add: --trust-strategy {name}"
            )


def check_method(method: str, confirmed: Collection[str] = ()) -> None:
    """Raises an error if a method has other people's code that the user has not confirmed.

    Args:
        method: The name of the method, in which + joins the names of the parts.
        confirmed: The texts that the user typed on the command line. If a text is the name of a
            method, each part of this method is confirmed.

    Raises:
        UserError: When only a file names a part whose code is not of this project.

    Example:
        >>> check_method("lora+norm")
        >>> check_method("lora+mine:Mine", ["mine:Mine"])
    """
    typed = {part for text in confirmed for part in parts_of(text)}
    for part in foreign_parts(method):
        if part not in typed:
            raise UserError(
                f"method {shown(part)}: only a file names this code, and it does not belong to "
                f"this project; if you trust the code, add: --trust-strategy {part}"
            )


def check_predictor(name: str, confirmed: Collection[str] = ()) -> None:
    """Raises an error if a predictor is other people's code that the user has not confirmed.

    Args:
        name: The name of the predictor.
        confirmed: The texts that the user typed on the command line.

    Raises:
        UserError: When only a file names the predictor, and its code is not of this project.

    Example:
        >>> check_predictor("plain")
        >>> check_predictor("mine:Mine", ["mine:Mine"])
    """
    if is_foreign(name) and name not in confirmed:
        raise UserError(
            f"predictor {shown(name)}: only a file names this code, and it does not belong to this "
            f"project; if you trust the code, add: --trust-strategy {name}"
        )


def is_known(name: str) -> bool:
    """Returns True if the code of a strategy belongs to this project or to Flower.

    A name without a colon names a file in the project's own ``strategies/``.

    Example:
        >>> [is_known(n) for n in ("fedavg", "flwr.serverapp.strategy:FedAdam", "flwr_like.x:Y")]
        [True, True, False]
    """
    module, colon, _ = name.partition(":")
    parts = module.split(".")
    return not colon or (parts[0] in KNOWN_PACKAGES and all(map(str.isidentifier, parts)))


def flags_for(config: Config) -> str:
    """Returns the flags with which a user confirms the code and the Ray cluster of an experiment.

    Example:
        >>> flags_for(Config(strategy=StrategyConfig(name="mine:Mine")))
        ' --trust-strategy mine:Mine'
        >>> flags_for(Config())
        ''
    """
    named = _names(config.strategy.name, config.strategy.options)
    unknown = [name for name in named if not is_known(name)]
    predictor = config.evaluation.predictor
    others = [*foreign_parts(config.finetuning.method), *([predictor] * is_foreign(predictor))]
    foreign = " ".join([*unknown, *others])
    address = config.engine.ray_address
    return (f" --trust-strategy {foreign}" if foreign else "") + (
        f" --ray-address {address}" if address else ""
    )


def texts_in(value: Any) -> Iterator[str]:
    """Yields all texts in nested lists and mappings, but not the keys of the mappings.

    Example:
        >>> list(texts_in({"strategy": ["fedavg", {"name": "mine:Mine"}], "rounds": 3}))
        ['fedavg', 'mine:Mine']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _names(name: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the name of a strategy, and of the strategies that its parameter `strategy` names."""
    if isinstance(name, str):
        yield name
    inner = options.get("strategy")
    if isinstance(inner, Mapping):
        yield from _names(inner.get("name"), inner)
    elif inner is not None:
        yield from _names(inner, {})
