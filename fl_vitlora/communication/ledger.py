"""The byte ledger: one entry for every message between server and clients.

The ledger only adds up sizes; `flower.wire.byte_counts` computes the size of a message.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Prefix:
    """The first entries of a ledger, to which entries may be added in the meantime.

    Attributes:
        entries: All entries of the ledger, in the order in which they were recorded.
        length: The number of entries that belong to the prefix.
    """

    entries: Sequence[Entry]
    length: int

    def after(self, first: int) -> Sequence[Entry]:
        """Returns the entries of the prefix without its first entries.

        Args:
            first: The number of entries to leave out.
        """
        return self.entries[first : self.length]


class Ledger:
    """The entries of a run, in the order in which the messages were counted.

    The ledger also lists its entries by round, and keeps the sums over all rounds up to date.
    Therefore the time to look up one round does not grow with the number of rounds.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._of_round: dict[int, list[Entry]] = {}
        self._by_round: dict[Purpose | None, dict[int, int]] = {None: {}}  # None: all purposes
        self._by_group: dict[str, int] = {}
        self._by_direction: dict[Direction, int] = {}
        self._largest: dict[Direction, int] = {}
        for entry in entries:
            self.record(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, entry: Entry) -> None:
        """Adds the entry of a message."""
        size, direction = entry.total, entry.direction
        self._entries.append(entry)
        self._of_round.setdefault(entry.round, []).append(entry)
        for purpose in (None, entry.purpose):
            sizes = self._by_round.setdefault(purpose, {})
            sizes[entry.round] = sizes.get(entry.round, 0) + size
        _add_groups(self._by_group, entry)
        self._by_direction[direction] = self._by_direction.get(direction, 0) + size
        self._largest[direction] = max(self._largest.get(direction, 0), size)

    def replace(self, other: Ledger) -> None:
        """Replaces the entries of this ledger by those of another ledger."""
        vars(self).update(vars(Ledger(other)))

    def prefix(self) -> Prefix:
        """Returns the entries so far; entries that are recorded later do not change the result."""
        return Prefix(self._entries, len(self._entries))

    def of_round(self, server_round: int) -> Sequence[Entry]:
        """Returns the entries of a round, in the order in which they were recorded."""
        return tuple(self._of_round.get(server_round, ()))

    def largest(self, direction: Direction) -> int:
        """Returns the bytes of the largest message in one direction; 0 if there is no message."""
        return self._largest.get(direction, 0)

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
        if server_round is None and client is None and purpose is None:
            kept = self._by_direction
            return sum(kept.values()) if direction is None else kept.get(direction, 0)
        return sum(
            entry.total
            for entry in self._asked(server_round)
            if direction in (None, entry.direction)
            and client in (None, entry.client)
            and purpose in (None, entry.purpose)
        )

    def by_group(self, server_round: int | None = None) -> dict[str, int]:
        """Returns a dictionary from group of tensors to coded bytes, in order of first occurrence.

        Args:
            server_round: Count only messages of this round; None counts all rounds.
        """
        if server_round is None:
            return dict(self._by_group)
        sums: dict[str, int] = {}
        for entry in self._asked(server_round):
            _add_groups(sums, entry)
        return sums

    def by_round(self, purpose: Purpose | None = None) -> dict[int, int]:
        """Returns the bytes of each round, overhead included; round 0 is the greeting.

        Args:
            purpose: Count only messages with this purpose, and only rounds with such a message;
                None counts all purposes.
        """
        return dict(self._by_round.get(purpose, {}))

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

    def _asked(self, server_round: int | None) -> Sequence[Entry]:
        """Returns the entries of a round; the entries of all rounds if the round is None."""
        return self._entries if server_round is None else self._of_round.get(server_round, ())


def _add_groups(sums: dict[str, int], entry: Entry) -> None:
    """Adds the bytes of the groups of an entry to a dictionary of sums, in place."""
    for group, size in entry.groups.items():
        sums[group] = sums.get(group, 0) + size


def _place(entry: Entry) -> tuple[int, int, int, str]:
    """Returns the sorting key: round, purpose (in the order of `Purpose`), client, direction."""
    return entry.round, get_args(Purpose).index(entry.purpose), entry.client, entry.direction
