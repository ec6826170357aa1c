"""A server that follows the protocol, and keeps a copy of every patch embedding that it sees.

Letters in shapes: W width of the model, D entries of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.state import State
from fl_vitlora.strategy import Update
from strategies.fedavg import FedAvg


@dataclass
class Notes:
    """The notes of the server.

    Attributes:
        steps: Change of the aggregated patch embedding in each round, (W, D) each.
        uploads: For each round, the change that each client sent, by client, (W, D) each. Under
            secure aggregation there is only one entry, the mean.
    """

    steps: list[Tensor] = field(default_factory=list)
    uploads: list[dict[int, Tensor]] = field(default_factory=list)

    def write(self, before: State, after: State, updates: Sequence[Update]) -> None:
        """Adds one round to the notes."""
        self.steps.append((after[WEIGHT] - before[WEIGHT]).flatten(1))
        self.uploads.append({u.client: u.delta[WEIGHT].flatten(1) for u in updates})


@dataclass(frozen=True, kw_only=True)
class CuriousFedAvg(FedAvg):
    """FedAvg whose server half takes notes. Clients get the ordinary FedAvg.

    Attributes:
        notes: The notes of the server.
    """

    notes: Notes = field(default_factory=Notes)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, as FedAvg does, and takes notes."""
        after, state = super().aggregate(model, updates, state)
        self.notes.write(model, after, updates)
        return after, state

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        """Pickles this strategy as the ordinary FedAvg, so that no notes are sent to workers."""
        return partial(FedAvg, server_rate=self.server_rate), ()
