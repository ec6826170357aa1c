"""The byte ledger: one entry for every message between server and clients.

The ledger only adds up sizes; `flower.wire.byte_counts` computes the size of a message.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Direction = Literal["uplink", "downlink"]
Purpose = Literal["greeting", "vouching", "training", "revealing", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The bytes of one message of a run.

    Attributes:
        round: The number of the round, from 1; 0 means the greeting, in which the server asks each
            node for its client number before the first round.
        purpose: What the message is for; "revealing" means that clients of a secure sum send seeds,
            and "vouching" that they sign its list of participants.
        client: The number of the client; -1 for a node that is not a client.
        direction: The direction: "uplink" from a client to the server, or "downlink" from the
            server to a client.
        groups: The bytes of coded tensors by group of tensors (`groups.GROUPS`, or "masked").
        overhead: The number of all other bytes of the serialised message.
    """

    round: int
    purpose: Purpose = "training"
    client: int
    direction: Direction
    groups: Mapping[str, int] = field(default_factory=dict)
    overhead: int

    @property
    def payload(self) -> int:
        """Returns the bytes of the coded tensors of all groups together."""
        return sum(self.groups.values())

    @property
    def total(self) -> int:
        """Returns the size of the message in bytes: payload plus overhead."""
        return self.payload + self.overhead


class Ledger:
    """The entries of a run, in the order in which the messages were counted."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._by_round: dict[int, int] = {}
        for entry in entries:
            self.record(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, entry: Entry) -> None:
        """Adds the entry of a message."""
        self._entries.append(entry)
        self._by_round[entry.round] = self._by_round.get(entry.round, 0) + entry.total

    def replace(self, other: Ledger) -> None:
        """Replaces the entries of this ledger by those of another ledger."""
        self._entries, self._by_round = list(other), other.by_round()

    def total(
        self,
        direction: Direction | None = None,
        server_round: int | None = None,
        *,
        client: int | None = None,
        purpose: Purpose | None = None,
    ) -> int:
        """Returns the bytes, including overhead, of the messages that meet all given conditions.

        Args:
            direction: Count only messages in this direction; None counts both directions.
            server_round: Count only messages of this round; None counts all rounds.
            client: Count only messages of this client; None counts all clients.
            purpose: Count only messages with this purpose; None counts all purposes.

        Returns:
            The number of bytes of the messages that are counted.

        Example:
            >>> ledger = Ledger()
            >>> one = Entry(round=1, client=0, direction="uplink", groups={"head": 90}, overhead=9)
            >>> ledger.record(one)
            >>> ledger.total("uplink"), ledger.total("downlink"), ledger.by_group()
            (99, 0, {'head': 90})
        """
        return sum(
            entry.total
            for entry in self._entries
            if direction in (None, entry.direction)
            and server_round in (None, entry.round)
            and client in (None, entry.client)
            and purpose in (None, entry.purpose)
        )

    def by_group(self, server_round: int | None = None) -> dict[str, int]:
        """Returns a dictionary from group of tensors to coded bytes, in order of first occurrence.

        Args:
            server_round: Count only messages of this round; None counts all rounds.
        """
        sums: dict[str, int] = {}
        for entry in self._entries:
            if server_round in (None, entry.round):
                for group, size in entry.groups.items():
                    sums[group] = sums.get(group, 0) + size
        return sums

    def by_round(self) -> dict[int, int]:
        """Returns the bytes of each round, overhead included; round 0 is the greeting."""
        return dict(self._by_round)

    def to_csv(self) -> str:
        """Returns a CSV table with a line for each message, sorted by round, purpose and client."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ("round", "purpose", "client", "direction", "payload", "overhead", "total")
        groups = sorted(self.by_group())
        writer.writerow([*columns, *groups])
        for entry in sorted(self._entries, key=_place):
            sizes = [entry.groups.get(group, 0) for group in groups]
            writer.writerow([*(getattr(entry, column) for column in columns), *sizes])
        return text.getvalue()


def _place(entry: Entry) -> tuple[int, int, int, str]:
    """Returns the sorting key: round, purpose (in the order of `Purpose`), client, direction."""
    return entry.round, get_args(Purpose).index(entry.purpose), entry.client, entry.direction
