"""Settings that a person must confirm: strategies from elsewhere, and a Ray cluster.

People exchange configurations and run folders, and four settings in these files can run code. A
strategy, a part of a fine-tuning method or a predictor that is named as ``package.module:Class`` is
imported, which runs the code of its module. The operator of a Ray cluster can run code in every
program that joins the cluster. So a value of one of these settings is not used if only a file gives
it. Strategies of this project and of Flower, and methods and predictors of this project, need no
confirmation. Any other value must be confirmed by the user, who types it on the command line.
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
        confirmed: The names of code and the cluster addresses that the user typed on the command
            line.

    Raises:
        UserError: If the strategy, the method, the predictor or the cluster is not confirmed.
    """
    check_strategy(config.strategy, confirmed)
    check_method(config.finetuning.method, confirmed)
    check_predictor(config.evaluation.predictor, confirmed)
    address = config.engine.ray_address
    if address is not None and address not in confirmed:
        raise UserError(
            f"engine.ray_address {shown(address)}: a file names this Ray cluster, and its "
            "operator can run code in this program; if you trust it, confirm it: "
            f"--ray-address {address}"
        )


def check_strategy(chosen: StrategyConfig, confirmed: Collection[str] = ()) -> None:
    """Raises an error if a strategy, or a strategy that it wraps, is neither known nor confirmed.

    Args:
        chosen: The name and the options of the strategy.
        confirmed: The names of strategies that the user typed on the command line.

    Raises:
        UserError: If a strategy is named only in a file.

    Example:
        >>> check_strategy(StrategyConfig(name="fedprox"))
        >>> check_strategy(StrategyConfig(name="mine:Mine"), ["mine:Mine"])
    """
    for name in _names(chosen.name, chosen.options):
        if not is_known(name) and name not in confirmed:
            raise UserError(
                f"strategy {shown(name)}: a file names this code, which belongs neither to "
                f"this project nor to Flower; if you trust it, confirm it: --trust-strategy {name}"
            )


def check_method(method: str, confirmed: Collection[str] = ()) -> None:
    """Raises an error if the code of a part of a method is neither known nor confirmed.

    Args:
        method: The name of the method, a sum of parts.
        confirmed: The texts that the user typed on the command line. If a text is the name of a
            method, each part of this method is confirmed.

    Raises:
        UserError: When such a part is named only in a file.

    Example:
        >>> check_method("lora+norm")
        >>> check_method("lora+mine:Mine", ["mine:Mine"])
    """
    typed = {part for text in confirmed for part in parts_of(text)}
    for part in foreign_parts(method):
        if part not in typed:
            raise UserError(
                f"method {shown(part)}: a file names this code, which does not belong to this "
                f"project; if you trust it, confirm it: --trust-strategy {part}"
            )


def check_predictor(name: str, confirmed: Collection[str] = ()) -> None:
    """Raises an error if the code of a predictor is neither known nor confirmed.

    Args:
        name: The name of the predictor.
        confirmed: The texts that the user typed on the command line.

    Raises:
        UserError: When the predictor is named only in a file.

    Example:
        >>> check_predictor("plain")
        >>> check_predictor("mine:Mine", ["mine:Mine"])
    """
    if is_foreign(name) and name not in confirmed:
        raise UserError(
            f"predictor {shown(name)}: a file names this code, which does not belong to this "
            f"project; if you trust it, confirm it: --trust-strategy {name}"
        )


def is_known(name: str) -> bool:
    """Returns True if the name of a strategy is the name of code of this project or of Flower.

    A name without a colon names a file in the project's own ``strategies/``.

    Example:
        >>> [is_known(n) for n in ("fedavg", "flwr.serverapp.strategy:FedAdam", "flwr_like.x:Y")]
        [True, True, False]
    """
    module, colon, _ = name.partition(":")
    parts = module.split(".")
    return not colon or (parts[0] in KNOWN_PACKAGES and all(map(str.isidentifier, parts)))


def flags_for(config: Config) -> str:
    """Returns the flags with which a user confirms the code and the cluster of an experiment.

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
    """Yields all texts in nested lists and mappings, except the keys of mappings.

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
    """Yields the name of a strategy and the names of the strategies that it wraps."""
    if isinstance(name, str):
        yield name
    inner = options.get("strategy")
    if isinstance(inner, Mapping):
        yield from _names(inner.get("name"), inner)
    elif inner is not None:
        yield from _names(inner, {})
