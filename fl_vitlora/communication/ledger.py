"""The byte ledger: one entry for every message that crossed the grid.

It only counts what it is told; who measures a message's serialised size is `flower.messages`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Literal, get_args

Direction = Literal["uplink", "downlink"]
Purpose = Literal["greeting", "training", "revealing", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message.

    Attributes:
        round: From 1; 0 for the greeting before the first round.
        purpose: What it was for.
        client: Number of the client's shard; -1 for a node that is no client.
        direction: Uplink from a client to the server, downlink from the server to a client.
        payload: Bytes of packed tensors.
        overhead: All other bytes of the serialised message.
    """

    round: int
    purpose: Purpose = "training"
    client: int
    direction: Direction
    payload: int
    overhead: int

    @property
    def total(self) -> int:
        """Adds payload and overhead."""
        return self.payload + self.overhead


class Ledger:
    """Entries in the order in which messages passed."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def record(self, entry: Entry) -> None:
        """Adds a message."""
        self._entries.append(entry)

    def total(self, direction: Direction | None = None, server_round: int | None = None) -> int:
        """Sums bytes.

        Args:
            direction: Only this one; both if not given.
            server_round: Only this one; all if not given.

        Returns:
            Bytes, overhead included.

        Example:
            >>> ledger = Ledger()
            >>> ledger.record(Entry(round=1, client=0, direction="uplink", payload=90, overhead=9))
            >>> ledger.total("uplink"), ledger.total("downlink")
            (99, 0)
        """
        return sum(
            entry.total
            for entry in self._entries
            if direction in (None, entry.direction) and server_round in (None, entry.round)
        )

    def to_csv(self) -> str:
        """Writes a table with a line for every message, round by round, as `_place` sorts them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Entry)])
        writer.writerows(astuple(entry) for entry in sorted(self._entries, key=_place))
        return text.getvalue()


def _place(entry: Entry) -> tuple[int, int, int, str]:
    """Sorts by round, then purpose as they follow in a round, then client and direction."""
    return entry.round, get_args(Purpose).index(entry.purpose), entry.client, entry.direction


def full_fine_tuning_bytes(ledger: Ledger, *, full_downlink: int, full_uplink: int) -> int:
    """Sums what the same messages would have cost if each model among them had been whole.

    Args:
        ledger: Of the run.
        full_downlink: Measured bytes of one message to a client with all of the model.
        full_uplink: Measured bytes of one reply with all of the model.

    Returns:
        Bytes in both directions; messages that carry no model count as they are.
    """
    sizes = {
        ("training", "downlink"): full_downlink,
        ("training", "uplink"): full_uplink,
        ("evaluation", "downlink"): full_downlink,
    }
    return sum(sizes.get((entry.purpose, entry.direction), entry.total) for entry in ledger)
