"""The result of the exchange of messages in a round: the participants' updates and failures."""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.federation.failures import Failure
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The updates and the failures of the clients in one round.

    Attributes:
        updates: The usable updates, sorted by client. With secure aggregation there is only one
            update: the mean over all clients that did not fail.
        failures: The clients that sent no usable update, sorted by client.
        taken_apart: The clients that were trained one by one because the workers failed on the
            batch of several clients. Updates of clients that are trained one by one may be rounded
            differently.
        clipped: The number of scalars that were clipped to the range of the secure sum; None
            without secure aggregation.
    """

    updates: tuple[Update, ...]
    failures: tuple[Failure, ...]
    taken_apart: tuple[int, ...] = ()
    clipped: int | None = None
