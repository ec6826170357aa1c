"""The contract of an observer, an object that sees the same data as the server in each round.

An observer gets the model that the server sent and the updates as the server has decoded them.
Under secure aggregation, the server sees only the mean of the updates, and the observer gets only
the mean. An attack by a curious server is a function of the data that an observer recorded
(`experiment.recorded_updates`).

This complete observer stores the length of each client's update:

    >>> import torch
    >>> from fl_vitlora.state import l2_norm
    >>> from fl_vitlora.strategy import Update
    >>> class Distances:
    ...     def __init__(self):
    ...         self.found = {}
    ...     def observe(self, sight):
    ...         for update in sight.updates:
    ...             self.found[sight.round, update.client] = l2_norm(update.delta)
    >>> observer = Distances()
    >>> update = Update(client=3, samples=8, loss=0.5, delta={"w": torch.tensor([3.0, 4.0])})
    >>> observer.observe(Sight(round=1, model={"w": torch.zeros(2)}, updates=(update,)))
    >>> observer.found
    {(1, 3): 5.0}

`testing.check_observer` checks an observer against this contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fl_vitlora.state import State
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The data that the server sees in one round.

    Attributes:
        round: The number of the round, from 1.
        model: The exchanged tensors at the beginning of the round, as the server sent them. If a
            client has a lower rank than the run, the client got smaller matrices.
        updates: The usable updates, decoded and ordered by client, before the server adds noise.
            With secure aggregation there is only one update, the mean of all clients' updates. The
            client number of this mean is `strategy.SEVERAL`.
    """

    round: int
    model: State
    updates: Sequence[Update]


class Observer(Protocol):
    """An object that receives the data that the server sees.

    The docstring of this module has an example.
    """

    def observe(self, sight: Sight) -> None:
        """Receives the data of one round.

        The observer gets copies of the data, and may keep the copies. The copies protect the server
        and other observers from mistakes of this observer; still, an observer must not change the
        data. If a round is repeated after an interruption, this method is called again. A round may
        have no usable update.

        Args:
            sight: The data that the server sees in this round.
        """
        ...
