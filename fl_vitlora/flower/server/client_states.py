"""What simulated clients remember, held by the program itself, so that it can be written down.

Flower keeps the context of a node to itself. Here it passes through on its way to a worker and
back: what a client remembers is taken from here, and put here again. A record that a worker has
sent back is never changed, but replaced; and only with replies that the server waits for, so that
a worker that comes to its end at last puts no old record over a newer one.

The delivery and the server meet here also to tell each other what became of single messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fl_vitlora.flower.client.workspace import client_of
from fl_vitlora.flower.wire import masking
from fl_vitlora.storage.trees import Tree

SECRET = frozenset({masking.RECORD})  # drawn anew with every greeting, and never written down
KINDS: Mapping[str, Any] = {"config": ConfigRecord, "metrics": MetricRecord}


class ClientStates:
    """The records of clients by their number.

    Args:
        known: What some remember from an earlier program.

    Attributes:
        followed: Whether what clients remember passes through here; set by the delivery.
    """

    def __init__(self, known: Mapping[int, Tree] = MappingProxyType({})) -> None:
        self.followed = False
        self._records = {client: from_tree(tree) for client, tree in known.items()}
        self._given_up: set[str] = set()
        self._apart: set[str] = set()

    def lend(self, context: Context) -> Context:
        """Puts into a context what its client remembers."""
        context.state = self._records.get(client_of(context), context.state)
        return context

    def note(self, context: Context) -> None:
        """Notes what the client of a context remembers from now on."""
        self._records[client_of(context)] = context.state

    def give_up(self, messages: Iterable[str]) -> None:
        """Notes the ids of messages whose replies nobody waits for any more."""
        self._given_up.update(messages)

    def is_given_up(self, message: str) -> bool:
        """Returns True if nobody waits any more for the reply to a message of that id."""
        return message in self._given_up

    def take_apart(self, messages: Iterable[str]) -> None:
        """Notes the ids of messages that went together and were answered one by one."""
        self._apart.update(messages)

    def is_taken_apart(self, message: str) -> bool:
        """Returns True if a message of that id was answered by itself, against the plan."""
        return message in self._apart

    def now(self) -> dict[int, RecordDict]:
        """Returns what each client remembers now, for `to_tree`."""
        return dict(self._records)


def to_tree(state: RecordDict) -> Tree:
    """Writes records as plain values and bytes, but for those that are secret."""
    return {name: _tree_of(record) for name, record in state.items() if name not in SECRET}


def from_tree(tree: Tree) -> RecordDict:
    """Reads what `to_tree` wrote."""
    return RecordDict({name: _record_of(kind, items) for name, (kind, items) in tree.items()})


def _tree_of(record: Any) -> Tree:
    if isinstance(record, ArrayRecord):
        arrays: Iterable[tuple[str, Array]] = record.items()
        return "arrays", {n: [a.dtype, list(a.shape), a.stype, a.data] for n, a in arrays}
    kind = next(name for name, one in KINDS.items() if isinstance(record, one))
    return kind, dict(record)


def _record_of(kind: str, items: Any) -> Any:
    if kind == "arrays":
        return ArrayRecord(
            {name: Array(d, tuple(s), t, data) for name, (d, s, t, data) in items.items()}
        )
    return KINDS[kind](items)
