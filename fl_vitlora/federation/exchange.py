"""The result of one exchange of messages: the updates and the failures of the participants."""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.federation.failures import Failure
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The updates and the failures of the clients in one round.

    Attributes:
        updates: The usable updates, sorted by client. Secure aggregation yields one update: the
            mean of all clients that did not fail.
        failures: The clients that sent no usable update, sorted by client.
        taken_apart: The clients that trained alone because the workers failed on the batch of
            several clients; their updates may be rounded differently from updates that are computed
            in a batch.
        clipped: The number of scalars that were clipped to the range of the secure sum; None
            without secure aggregation.
    """

    updates: tuple[Update, ...]
    failures: tuple[Failure, ...]
    taken_apart: tuple[int, ...] = ()
    clipped: int | None = None
