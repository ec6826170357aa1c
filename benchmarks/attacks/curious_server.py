"""A server that follows the protocol and keeps a copy of every patch embedding that it sees.

W width of the model, D entries a patch, K clients.
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
    """What the server has written down.

    Attributes:
        steps: How every round changed the aggregated patch embedding, (W, D) each.
        uploads: The change that each client sent in each round, by client, (W, D) each. Under
            secure aggregation there is one entry only: the mean.
    """

    steps: list[Tensor] = field(default_factory=list)
    uploads: list[dict[int, Tensor]] = field(default_factory=list)

    def write(self, before: State, after: State, updates: Sequence[Update]) -> None:
        """Writes down one round."""
        self.steps.append((after[WEIGHT] - before[WEIGHT]).flatten(1))
        self.uploads.append({u.client: u.delta[WEIGHT].flatten(1) for u in updates})


@dataclass(frozen=True, kw_only=True)
class CuriousFedAvg(FedAvg):
    """FedAvg whose server half takes notes. Clients are sent the ordinary FedAvg.

    Attributes:
        notes: Where the server writes.
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
        """Pickles as the ordinary FedAvg, so that no notes travel to workers."""
        return partial(FedAvg, server_rate=self.server_rate), ()
