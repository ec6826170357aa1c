"""The keys of a round's configuration that clients read, and the synonyms of these keys.

A strategy of Flower may send a different configuration to every client. A client would silently
ignore an unknown key, and the run would differ from the intention of the strategy's author.
Therefore the server refuses unknown keys, and replaces a synonym by the name that clients read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fl_vitlora.errors import UserError, shown, unknown
from fl_vitlora.federation.instruction import (
    LEARNING_RATE,
    LOCAL_EPOCHS,
    PROXIMAL_MU,
    SERVER_ROUND,
    ConfigValue,
)
from fl_vitlora.flower.wire import messages

Config = dict[str, ConfigValue]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rate(value: object) -> bool:
    return _is_number(value) and float(value) > 0  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_weight(value: object) -> bool:
    return _is_number(value) and float(value) >= 0  # type: ignore[arg-type]


VALUES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    SERVER_ROUND: (_is_count, "a whole number from 1"),
    LEARNING_RATE: (_is_rate, "a number above 0"),
    LOCAL_EPOCHS: (_is_count, "a whole number from 1"),
    PROXIMAL_MU: (_is_weight, "a number from 0"),
    messages.CLIPPING_NORM: (_is_rate, "a number above 0"),
}
SYNONYMS: Mapping[str, str] = {
    "lr": LEARNING_RATE,
    "learning_rate": LEARNING_RATE,
    "local_epochs": LOCAL_EPOCHS,
    "epochs": LOCAL_EPOCHS,
    "num-epochs": LOCAL_EPOCHS,
    "num_epochs": LOCAL_EPOCHS,
    "proximal_mu": PROXIMAL_MU,
    "server_round": SERVER_ROUND,
}


def understood(
    sent: Mapping[str, ConfigValue],
    given: Mapping[str, ConfigValue],
    strategy: str,
) -> Config:
    """Returns the configuration that a strategy sends to a client, with keys that clients read.

    Args:
        sent: The configuration in the strategy's message.
        given: The server loop's configuration: the round and the scheduled learning rate.
        strategy: Name of the strategy, for error messages.

    Returns:
        The configuration that the client gets. If the strategy and the server loop both set a key,
        the strategy's value counts.

    Raises:
        UserError: If clients do not know a key, if a value is not allowed for its key, if two
            synonyms of one key have different values, or if the round or the learning rate is
            missing.

    Example:
        >>> given = {"server-round": 3, "learning-rate": 0.1}
        >>> understood({**given, "lr": 0.01, "epochs": 2}, given, "Mine")
        {'server-round': 3, 'learning-rate': 0.01, 'local-epochs': 2}
    """
    config: Config = {}
    said: dict[str, str] = {}  # the name that the strategy used for each key that it changed
    for name, value in sent.items():
        key = _key_of(name, value, strategy)
        as_given = given.get(name) == value
        if not as_given and key in said and config[key] != value:
            raise UserError(
                f"strategy {strategy} sends clients {said[key]} {config[key]!r} and {name} "
                f"{value!r}, which are two names of one setting; send one of them"
            )
        if as_given and key in said:
            continue
        if not as_given:
            said[key] = name
        config[key] = value
    if missing := next((name for name in given if name not in config), None):
        raise UserError(
            f"strategy {strategy} sends clients no {missing}, without which no client trains; "
            "keep the entries of the config that configure_train gets"
        )
    return config


def _key_of(name: str, value: ConfigValue, strategy: str) -> str:
    """Returns the key that clients read for a name, and checks the value that a strategy sends.

    Raises:
        UserError: If clients do not know the name, or if the value is not allowed for its key.
    """
    key = SYNONYMS.get(name, name)
    if key not in VALUES:
        raise UserError(
            f"strategy {strategy} sends clients a configuration key that they do not read: "
            f"{unknown('key', name, [*VALUES, *SYNONYMS])}"
        )
    fits, expected = VALUES[key]
    if not fits(value):
        raise UserError(
            f"strategy {strategy} sends clients {name} {shown(value)}; expected {expected}"
        )
    return key
