"""What a file may name and only a person may confirm: code from elsewhere, and a Ray cluster.

A configuration is data, and people exchange configurations and run folders. Three settings in them
reach further. A strategy or a part of a fine-tuning method that is named as
``package.module:Class`` is imported, and so its code is run. And whoever operates a Ray cluster can
run code in every program that joins it. So a file alone never brings these about. Strategies of
this project and of Flower, and methods of this project, need no confirmation. All else must be
typed on the command line as well, where typing it confirms it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fl_vitlora.config import Config, StrategyConfig
from fl_vitlora.config.method_names import foreign_parts, parts_of
from fl_vitlora.errors import UserError, shown

KNOWN_PACKAGES = ("strategies", "flwr")  # whose classes need no confirmation


def check_confirmed(config: Config, confirmed: Collection[str] = ()) -> None:
    """Refuses an experiment that would run code, or join a cluster, that nobody confirmed.

    Args:
        config: The experiment, whoever wrote it.
        confirmed: Names of strategies and addresses of clusters that the person in charge typed.

    Raises:
        UserError: When there is such code or such a cluster.
    """
    check_strategy(config.strategy, confirmed)
    check_method(config.finetuning.method, confirmed)
    address = config.engine.ray_address
    if address is not None and address not in confirmed:
        raise UserError(
            f"engine.ray_address {shown(address)}: only a file names this Ray cluster, and whoever "
            "operates it can run code in this program; if you trust it, type it: "
            f"--ray-address {address}"
        )


def check_strategy(chosen: StrategyConfig, confirmed: Collection[str] = ()) -> None:
    """Refuses a strategy that is neither known nor confirmed, also one within a wrapper.

    Args:
        chosen: Its name and its options.
        confirmed: Names of strategies that the person in charge typed.

    Raises:
        UserError: When only a file names it.

    Example:
        >>> check_strategy(StrategyConfig(name="fedprox"))
        >>> check_strategy(StrategyConfig(name="mine:Mine"), ["mine:Mine"])
    """
    for name in _names(chosen.name, chosen.options):
        if not is_known(name) and name not in confirmed:
            raise UserError(
                f"strategy {shown(name)}: only a file names this code, which belongs neither to "
                f"this project nor to Flower; if you trust it, type it: --trust-strategy {name}"
            )


def check_method(method: str, confirmed: Collection[str] = ()) -> None:
    """Refuses a fine-tuning method with a part whose code is neither known nor confirmed.

    Args:
        method: The name of the method, a sum of parts.
        confirmed: The texts that the person in charge typed; a sum confirms each of its parts.

    Raises:
        UserError: When only a file names such a part.

    Example:
        >>> check_method("lora+norm")
        >>> check_method("lora+mine:Mine", ["mine:Mine"])
    """
    typed = {part for text in confirmed for part in parts_of(text)}
    for part in foreign_parts(method):
        if part not in typed:
            raise UserError(
                f"method {shown(part)}: only a file names this code, which does not belong to this "
                f"project; if you trust it, type it: --trust-strategy {part}"
            )


def is_known(name: str) -> bool:
    """Tells whether a strategy's name can lead to code of this project or of Flower alone.

    A name without a colon is that of a file in the project's own ``strategies/``.

    Example:
        >>> [is_known(n) for n in ("fedavg", "flwr.serverapp.strategy:FedAdam", "flwr_like.x:Y")]
        [True, True, False]
    """
    module, colon, _ = name.partition(":")
    parts = module.split(".")
    return not colon or (parts[0] in KNOWN_PACKAGES and all(map(str.isidentifier, parts)))


def flags_for(config: Config) -> str:
    """Writes the flags that confirm all that a file with this experiment cannot bring by itself.

    Example:
        >>> flags_for(Config(strategy=StrategyConfig(name="mine:Mine")))
        ' --trust-strategy mine:Mine'
        >>> flags_for(Config())
        ''
    """
    named = _names(config.strategy.name, config.strategy.options)
    unknown = [name for name in named if not is_known(name)]
    foreign = " ".join([*unknown, *foreign_parts(config.finetuning.method)])
    address = config.engine.ray_address
    return (f" --trust-strategy {foreign}" if foreign else "") + (
        f" --ray-address {address}" if address else ""
    )


def texts_in(value: Any) -> Iterator[str]:
    """Yields all texts in nested plain values, but for the names of settings.

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
    """Yields the name of a strategy, and the names of those that its options have it wrap."""
    if isinstance(name, str):
        yield name
    inner = options.get("strategy")
    if isinstance(inner, Mapping):
        yield from _names(inner.get("name"), inner)
    elif inner is not None:
        yield from _names(inner, {})
