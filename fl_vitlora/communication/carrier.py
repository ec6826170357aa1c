"""Estimates the bytes that Flower's transport adds to the messages of a run.

The ledger (the list of all messages with their sizes) counts the objects into which a message is
serialised. On a real SuperLink (Flower's server program) each object has its own request, with a
request line, headers, ids and the node's signature. A message is also announced, confirmed, and
described by a tree of ids. The bytes of the request, the announcement, the confirmation and the
tree do not depend on the size of the message:

    bytes with transport  =  bytes in ledger  +  Σ over directions (messages · bytes added to one)

The bytes added to one message were counted on the connection of SuperNodes (Flower's programs at
the clients), with Flower 1.41 over HTTP and without TLS, by `benchmarks/flower_traffic.py`. The
counted messages had three objects, as every small message has. A message above a megabyte is cut
into more objects, so the estimate for full fine-tuning is a little too low. Heartbeats and requests
that find no message are not counted, because their number depends on the duration of a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_vitlora.communication.ledger import Direction, Entry

AROUND: Mapping[Direction, int] = {"downlink": 5_600, "uplink": 5_000}  # bytes added to one message


def with_flower(entries: Iterable[Entry]) -> int:
    """Returns the bytes of all messages, including the bytes that Flower's transport adds.

    Args:
        entries: The entries of a ledger, one for each message.

    Example:
        >>> sent = [Entry(round=1, client=0, direction="uplink", overhead=400) for _ in range(2)]
        >>> with_flower(sent) == 2 * (400 + AROUND["uplink"])
        True
    """
    return sum(entry.total + AROUND[entry.direction] for entry in entries)
