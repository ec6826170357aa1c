"""Chooses unreliable clients, which every real federation has, and makes them fail.

In every round an unreliable client fails with probability `faults.rate`, before it trains:

    raise       its app raises an exception, as if memory ran out
    crash       its process ends at once, as if the system killed it
    slow        it waits `faults.delay` seconds, perhaps longer than the server waits

The faults are drawn with the run's seed, so a repeated round has the same faults. In a simulation,
a crash ends a worker process, and the messages that this worker had for other clients are sent
again. In a deployment, Flower's SuperNode (the program at a client) starts a process for every
message, so a crash ends only this process and not the SuperNode. All functions except `strike` are
pure.
"""

from __future__ import annotations

import os
import time

import torch

from fl_vitlora.config import Config, Fault
from fl_vitlora.errors import UserError
from fl_vitlora.rng import deal, generator


def unreliable(config: Config) -> dict[Fault, list[int]]:
    """Draws the unreliable clients with the run's seed, and gives them the kinds of fault in turn.

    Args:
        config: The settings of the experiment.

    Returns:
        A dictionary: for each kind of fault, the sorted numbers of its unreliable clients.

    Example:
        >>> from fl_vitlora.config import load
        >>> three = load(None, {"faults.kinds": ["raise", "slow"], "faults.clients": 3})
        >>> {kind: len(clients) for kind, clients in unreliable(three).items()}
        {'raise': 2, 'slow': 1}
    """
    faults = config.faults
    return deal(faults.kinds, faults.clients, config.clients, generator(config.seed, "faults"))


def fault_of(config: Config, client: int, server_round: int) -> Fault | None:
    """Returns the fault of a client in a round, or None if the client does not fail."""
    kind = next((kind for kind, clients in unreliable(config).items() if client in clients), None)
    if kind is None:
        return None
    chance = torch.rand((), generator=generator(config.seed, "faults", server_round, client)).item()
    return kind if chance < config.faults.rate else None


def strike(config: Config, client: int, server_round: int) -> None:
    """Makes a client fail in a round, if the client has a fault in this round.

    Raises:
        RuntimeError: If the fault is "raise".
    """
    match fault_of(config, client, server_round):
        case "raise":
            raise RuntimeError(
                f"simulated fault of client {client} in round {server_round} (setting faults.kinds)"
            )
        case "crash":
            os._exit(1)
        case "slow":
            time.sleep(config.faults.delay)


def check(config: Config) -> None:
    """Checks that kinds of fault and a possible number of unreliable clients are set together.

    Raises:
        UserError: If the settings of the faults do not fit together; the message names settings
            that fit.
    """
    faults = config.faults
    if faults.kinds and not faults.clients:
        raise UserError(
            f"faults.kinds {','.join(faults.kinds)}: no client is unreliable; set the number of "
            "unreliable clients, for example faults.clients=5"
        )
    if faults.clients and not faults.kinds:
        raise UserError(
            f"faults.clients {faults.clients}: no kind of fault is set; choose one or more, for "
            "example faults.kinds=[raise,crash,slow]"
        )
    if faults.clients > config.clients:
        raise UserError(
            f"faults.clients {faults.clients}: the experiment has {config.clients} clients; "
            f"expected at most {config.clients}"
        )
