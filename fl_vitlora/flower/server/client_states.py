"""The memory of simulated clients, which this program stores itself and writes into checkpoints.

Flower gives no access to the context of a node. Therefore, before a worker answers a message, the
delivery (`simulation.delivery`) copies the client's records from `ClientStates` into the client's
context. After the answer, the delivery stores the changed records in `ClientStates`. A stored
record is replaced as a whole and never changed in place. Changed records are stored only if the
server still waits for the client's reply, so that a late worker cannot overwrite new records with
old ones.

Through `ClientStates`, the delivery also learns which replies the server no longer waits for, and
the server learns which clients trained alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fl_vitlora.flower.client.workspace import client_of
from fl_vitlora.flower.wire import masking
from fl_vitlora.storage.trees import Tree

SECRET = frozenset({masking.RECORD})  # keys of secure sums are never saved, but drawn again
KINDS: Mapping[str, Any] = {"config": ConfigRecord, "metrics": MetricRecord}


class ClientStates:
    """The memory of the simulated clients: the records in their Flower contexts, by client number.

    Args:
        known: The records of some clients from a checkpoint, as `to_tree` returned them.

    Attributes:
        followed: True if the delivery stores the clients' records in this object.
    """

    def __init__(self, known: Mapping[int, Tree] = MappingProxyType({})) -> None:
        self.followed = False
        self._records = {client: from_tree(tree) for client, tree in known.items()}
        self._given_up: set[str] = set()
        self._apart: set[str] = set()

    def lend(self, context: Context) -> Context:
        """Puts the records of a client into its context, and returns the context."""
        context.state = self._records.get(client_of(context), context.state)
        return context

    def note(self, context: Context) -> None:
        """Stores the records that are in a client's context."""
        self._records[client_of(context)] = context.state

    def give_up(self, messages: Iterable[str]) -> None:
        """Notes the ids of messages whose replies the server no longer waits for."""
        self._given_up.update(messages)

    def is_given_up(self, message: str) -> bool:
        """Returns True if the server no longer waits for the reply to the message with this id."""
        return message in self._given_up

    def take_apart(self, messages: Iterable[str]) -> None:
        """Notes the ids of messages that were sent in one batch but answered one by one."""
        self._apart.update(messages)

    def is_taken_apart(self, message: str) -> bool:
        """Returns True if the message with this id was answered alone instead of in its batch."""
        return message in self._apart

    def now(self) -> dict[int, RecordDict]:
        """Returns the current records of each client; `to_tree` converts them for a checkpoint."""
        return dict(self._records)


def to_tree(state: RecordDict) -> Tree:
    """Returns records as plain values and bytes, without the records that hold keys."""
    return {name: _tree_of(record) for name, record in state.items() if name not in SECRET}


def from_tree(tree: Tree) -> RecordDict:
    """Returns the records that `to_tree` converted to plain values and bytes."""
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
