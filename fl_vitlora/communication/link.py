"""The time that the messages of a run would take over links of a given speed.

    seconds of a round = max over clients of  Σ over messages (latency + 8 · bytes / rate)

The sum is over the messages of one client. Every client has its own link, with one rate for each
direction, and transfers one message at a time. The server's connection is not a bottleneck. The
server waits for the slowest client. The bytes are taken from the ledger, which does not count the
bytes that lower protocols such as TCP add. The training time is not included.

1 Mbit is 10⁶ bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fl_vitlora.communication.ledger import Direction, Entry

MEGABIT = 1e6


@dataclass(frozen=True, kw_only=True)
class Link:
    """The network connection of a client.

    Attributes:
        uplink: The speed towards the server in Mbit/s.
        downlink: The speed towards the client in Mbit/s.
        latency: The time in seconds from sending the first bit until this bit arrives.
    """

    uplink: float
    downlink: float
    latency: float

    def seconds(self, direction: Direction, size: int) -> float:
        """Returns the transfer time of one message in seconds.

        Args:
            direction: The direction of the message, "uplink" or "downlink".
            size: The size of the message in bytes.

        Example:
            >>> Link(uplink=10, downlink=100, latency=0.05).seconds("uplink", 1_000_000)
            0.8500000000000001
        """
        rate = self.uplink if direction == "uplink" else self.downlink
        return self.latency + 8 * size / (rate * MEGABIT)


def transfer_seconds(entries: Iterable[Entry], link: Link) -> dict[int, float]:
    """Returns the transfer time of each round in seconds.

    Args:
        entries: The entries of a ledger, one for each message.
        link: The link that every client has.

    Returns:
        A dictionary: for each round, the seconds that the slowest client needs.
    """
    spent: dict[int, dict[int, float]] = {}
    for entry in entries:
        clients = spent.setdefault(entry.round, {})
        seconds = link.seconds(entry.direction, entry.total)
        clients[entry.client] = clients.get(entry.client, 0.0) + seconds
    return {number: max(clients.values()) for number, clients in sorted(spent.items())}
