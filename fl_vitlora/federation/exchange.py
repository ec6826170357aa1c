"""The result of one round of messages: what the server got back from the clients it asked."""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.federation.failures import Failure
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What the clients of a round sent back.

    Attributes:
        updates: The usable updates, sorted by client. A secure sum yields one update: the mean of
            all clients that did not fail.
        failures: The clients that sent no usable update, sorted by client.
        taken_apart: The clients that trained alone after all workers of their batch were lost.
            Their updates may be rounded differently.
        clipped: The number of scalars beyond the range of the secure sum; None without such a sum.
    """

    updates: tuple[Update, ...]
    failures: tuple[Failure, ...]
    taken_apart: tuple[int, ...] = ()
    clipped: int | None = None
