"""What Flower's transport adds around the messages of the ledger: an estimate by their number.

The ledger counts the objects that a message is serialised to. On a real SuperLink each object has a
request of its own, with a line, headers, ids and the node's signature. A message is announced,
confirmed, and named by a tree of ids. All of that is as long for a small message as for a large
one:

    bytes with Flower's own  =  ledger  +  Σ over directions (messages · bytes around a message)

The bytes around a message were counted on the line of SuperNodes, with Flower 1.41 over HTTP and
without TLS, by `benchmarks/flower_traffic.py`. They are those of a message of three objects, as
small ones have. A message above a megabyte is cut into more objects, so that the figure for full
fine-tuning is a little too low. Requests that find no message to fetch, and heartbeats, depend on
how long a round takes; they are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_vitlora.communication.ledger import Direction, Entry

AROUND: Mapping[Direction, int] = {"downlink": 5_600, "uplink": 5_000}  # bytes around a message


def with_flower(entries: Iterable[Entry]) -> int:
    """Sums the bytes of messages and of what Flower's transport adds around each.

    Args:
        entries: Entries of a ledger.

    Example:
        >>> sent = [Entry(round=1, client=0, direction="uplink", overhead=400) for _ in range(2)]
        >>> with_flower(sent) == 2 * (400 + AROUND["uplink"])
        True
    """
    return sum(entry.total + AROUND[entry.direction] for entry in entries)
