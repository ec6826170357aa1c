"""The contract of an observer, which sees in every round what the server sees.

An observer is shown the model that the server sent and the updates as the server has decoded them.
Where updates are summed securely, the server sees their mean alone, and so does the observer.
Attacks on a server's knowledge are functions of what an observer recorded
(`experiment.recorded_updates`).

This complete observer remembers how far each client moved the model:

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
    """What the server sees in one round.

    Attributes:
        round: The number of the round, from 1.
        model: The exchanged tensors that the round began with, as the server sent them. Clients of
            a smaller rank were sent smaller matrices.
        updates: The usable updates, decoded and ordered by client, before the server adds noise.
            Under secure aggregation this is one update, the mean of all (`strategy.SEVERAL`).
    """

    round: int
    model: State
    updates: Sequence[Update]


class Observer(Protocol):
    """Receives what the server sees; see the module for an example."""

    def observe(self, sight: Sight) -> None:
        """Looks at one round.

        An observer must not change what it is shown. A run hands it copies, so that it may keep
        them, and a mistake reaches neither the server nor another observer. A round that is
        repeated after an interruption is shown again, and a round may have no usable update.

        Args:
            sight: What the server sees in this round.
        """
        ...
