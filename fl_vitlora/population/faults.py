"""Unreliable clients, as every federation has them: who they are, when they fail, and how.

In a round an unreliable client fails with the chance `faults.rate`, before it trains:

    raise       its app raises an exception, as out of memory
    crash       its process ends at once, as one that the system has killed
    slow        it waits `faults.delay` seconds, perhaps longer than the server does

Who fails when follows from the run's seed, so that a round that is repeated fails again. A crash
takes the worker of a simulation with it, and others' messages that the worker had at hand: these
are repeated. On a SuperNode of Flower, which starts a process for every message, it ends that one,
and the node goes on. All functions are pure but `strike`.
"""

from __future__ import annotations

import os
import time

import torch

from fl_vitlora.config import Config, Fault
from fl_vitlora.errors import UserError
from fl_vitlora.rng import deal, generator


def unreliable(config: Config) -> dict[Fault, list[int]]:
    """Draws the unreliable clients by the run's seed, and deals the kinds of fault to them in turn.

    Args:
        config: The experiment.

    Returns:
        Their numbers, sorted, by what happens to them.

    Example:
        >>> from fl_vitlora.config import load
        >>> three = load(None, {"faults.kinds": ["raise", "slow"], "faults.clients": 3})
        >>> {kind: len(clients) for kind, clients in unreliable(three).items()}
        {'raise': 2, 'slow': 1}
    """
    faults = config.faults
    return deal(faults.kinds, faults.clients, config.clients, generator(config.seed, "faults"))


def fault_of(config: Config, client: int, server_round: int) -> Fault | None:
    """Tells what happens to a client in a round; nothing to a reliable one."""
    kind = next((kind for kind, clients in unreliable(config).items() if client in clients), None)
    if kind is None:
        return None
    chance = torch.rand((), generator=generator(config.seed, "faults", server_round, client)).item()
    return kind if chance < config.faults.rate else None


def strike(config: Config, client: int, server_round: int) -> None:
    """Lets happen to a client what is to happen to it in a round.

    Raises:
        RuntimeError: When its app is to.
    """
    match fault_of(config, client, server_round):
        case "raise":
            raise RuntimeError(f"simulated fault of client {client} in round {server_round}")
        case "crash":
            os._exit(1)
        case "slow":
            time.sleep(config.faults.delay)


def check(config: Config) -> None:
    """Refuses faults that happen to nobody, or to more clients than there are.

    Raises:
        UserError: With what would work.
    """
    faults = config.faults
    if faults.kinds and not faults.clients:
        raise UserError(
            f"faults.kinds {','.join(faults.kinds)}: no client is unreliable; say how many: "
            "faults.clients=5"
        )
    if faults.clients and not faults.kinds:
        raise UserError(
            f"faults.clients {faults.clients}: say what happens to them: "
            "faults.kinds=[raise,crash,slow]"
        )
    if faults.clients > config.clients:
        raise UserError(
            f"faults.clients {faults.clients}: there are {config.clients} clients; take at most "
            f"{config.clients}"
        )
