"""How long the messages of a run would travel in deployment, over links of a stated speed.

    seconds of a round = max over clients of  Σ over its messages (latency + 8 · bytes / rate)

Every client has a link of its own, with a rate for each direction; one message follows the other;
the server's own line is no bottleneck, and it waits for the slowest client. The bytes are those of
the ledger: what protocols add below is not in them, nor is the time to train.

1 Mbit is 10⁶ bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fl_vitlora.communication.ledger import Direction, Entry

MEGABIT = 1e6


@dataclass(frozen=True, kw_only=True)
class Link:
    """A client's line.

    Attributes:
        uplink: Mbit/s towards the server.
        downlink: Mbit/s towards the client.
        latency: Seconds from the first bit sent to the first that arrives.
    """

    uplink: float
    downlink: float
    latency: float

    def seconds(self, direction: Direction, size: int) -> float:
        """Tells how long a message travels.

        Args:
            direction: Which way.
            size: Its bytes.

        Example:
            >>> Link(uplink=10, downlink=100, latency=0.05).seconds("uplink", 1_000_000)
            0.8500000000000001
        """
        rate = self.uplink if direction == "uplink" else self.downlink
        return self.latency + 8 * size / (rate * MEGABIT)


def transfer_seconds(entries: Iterable[Entry], link: Link) -> dict[int, float]:
    """Tells how long the messages of each round travel.

    Args:
        entries: Entries of a ledger.
        link: Of every client.

    Returns:
        Seconds by round, for the slowest client of each.
    """
    spent: dict[int, dict[int, float]] = {}
    for entry in entries:
        clients = spent.setdefault(entry.round, {})
        seconds = link.seconds(entry.direction, entry.total)
        clients[entry.client] = clients.get(entry.client, 0.0) + seconds
    return {number: max(clients.values()) for number, clients in sorted(spent.items())}
