"""Chooses byzantine (hostile) clients, for research, and computes the updates that they send.

A hostile client trains like any other client. After the training, the hostile client multiplies its
update Δ by a number:

    sign_flip   -Δ      the opposite of the change that the client's training made
    scale       c·Δ     c = `attack.factor`: one client outweighs all others in the mean; the server
                        refuses values above `flower.wire.updates.LARGEST`, which training never
                        reaches
    nan         NaN     a broken client; the server refuses such an update and counts a failure

A hostile client does not know the updates of other clients. A hostile client reports its loss and
other numbers honestly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fl_vitlora.config import Attack, Config
from fl_vitlora.errors import UserError
from fl_vitlora.rng import deal, generator
from fl_vitlora.state import State, scale


def hostile(config: Config) -> dict[Attack, list[int]]:
    """Draws the hostile clients with the run's seed, and gives them the kinds of attack in turn.

    Args:
        config: The settings of the experiment.

    Returns:
        A dictionary: for each kind of attack, the sorted numbers of its hostile clients.

    Example:
        >>> from fl_vitlora.config import load
        >>> six = load(None, {"attack.kinds": ["scale", "nan"], "attack.clients": 6})
        >>> {kind: len(clients) for kind, clients in hostile(six).items()}
        {'scale': 3, 'nan': 3}
    """
    attack = config.attack
    return deal(attack.kinds, attack.clients, config.clients, generator(config.seed, "attack"))


def kind_of(config: Config, client: int) -> Attack | None:
    """Returns the kind of attack of a client, or None if the client is honest."""
    return next((kind for kind, clients in hostile(config).items() if client in clients), None)


def corrupt(delta: Mapping[str, Tensor], kind: Attack, factor: float) -> State:
    """Returns the update that a hostile client sends instead of its own.

    Args:
        delta: The change of each tensor by the client's training.
        kind: The kind of the attack: sign_flip, scale or nan.
        factor: The factor c of the attack ``scale``; the other attacks ignore it.

    Returns:
        A new update with the same names and shapes: `delta` multiplied by -1, c or NaN.

    Example:
        >>> import torch
        >>> corrupt({"w": torch.tensor([1.0, -2.0])}, "sign_flip", 100.0)
        {'w': tensor([-1.,  2.])}
    """
    factors: Mapping[Attack, float] = {"sign_flip": -1.0, "scale": factor, "nan": math.nan}
    return scale(delta, factors[kind])


def as_sent(config: Config, client: int, delta: State) -> State:
    """Returns the update that a client sends: the honest update, or the corrupted update."""
    kind = kind_of(config, client)
    return delta if kind is None else corrupt(delta, kind, config.attack.factor)


def check(config: Config) -> None:
    """Checks that kinds of attack and hostile clients are set together, and one client is honest.

    Raises:
        UserError: If the settings of the attack do not fit together; the message names settings
            that fit.
    """
    attack = config.attack
    if attack.kinds and not attack.clients:
        raise UserError(
            f"attack.kinds {','.join(attack.kinds)}: no client is hostile; set the number of "
            "hostile clients, for example attack.clients=6"
        )
    if attack.clients and not attack.kinds:
        raise UserError(
            f"attack.clients {attack.clients}: no kind of attack is set; choose one or more, for "
            "example attack.kinds=[sign_flip,scale,nan]"
        )
    if attack.clients >= config.clients:
        raise UserError(
            f"attack.clients {attack.clients}: at least one of {config.clients} clients must be "
            f"honest; expected at most {config.clients - 1}"
        )
