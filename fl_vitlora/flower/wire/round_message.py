"""What the server sends to one client in one round, as one value with its writer and its reader.

Both ends use the same value: the server makes it (`server.composing`) and writes it, and a client
reads it. What `read` returns is what `Writer.write` was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.global_model import join
from fl_vitlora.federation.instruction import (
    LEARNING_RATE,
    LOCAL_EPOCHS,
    PROXIMAL_MU,
    SERVER_ROUND,
    ConfigValue,
)
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import MessageLayouts, pairs_of, part
from fl_vitlora.flower.wire.state_record import StateRecord, state_in
from fl_vitlora.lowrank import MERGED_A, MERGED_B, cut, pad
from fl_vitlora.state import State

T = TypeVar("T")
Record = ArrayRecord | MetricRecord | ConfigRecord
NAMED = frozenset(  # the names of the scalars that have a field of their own
    {
        SERVER_ROUND,
        LEARNING_RATE,
        LOCAL_EPOCHS,
        PROXIMAL_MU,
        messages.CLIPPING_NORM,
        messages.VIEWS,
        messages.FROZEN,
        messages.RESTARTED,
        messages.CACHED,
        messages.CACHED_SINCE,
        messages.TAKEN,
        messages.MERGES,
        messages.MERGED_RANKS,
    }
)


@dataclass(frozen=True, kw_only=True)
class RoundMessage:
    """What one client is sent in one round.

    Attributes:
        tensors: The tensors of the model that are sent, in full shape.
        cached: The names of the tensors that are not sent, because the client has them.
        since: The round in which the client remembered them; 0 if they have their initial values.
        merged: The pairs to be added to frozen weights, one state for each round, in order.
        increments: The sum to be added to the pre-trained weights in place of pairs, by path.
        merges: The number of merged rounds that the client already has, and the number after this
            message. If the first number is 0, the client starts afresh.
        broadcast: The tensors that the strategy sends beside the model, in full shape.
        round: The number of the round, from 1.
        rate: The learning rate; 0 if the client does not train.
        epochs: The number of passes over the shard; None for the run's own number.
        frozen: The endings of the names of tensors that rest.
        restarted: The endings of the names of tensors that start every round at their first values.
        proximal_mu: The weight of the proximal penalty.
        clipping_norm: The norm that updates must not exceed; None without a wrapper that sets it.
        taken: The round of this client's last update that the server took; None if the server took
            the last one that it asked for. The server knows nothing of what came later.
        views: The views of the test images that the client measures; None if it trains.
        others: The other scalars of the round, by name.
    """

    tensors: State = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    since: int = 0
    merged: tuple[State, ...] = ()
    increments: State = field(default_factory=dict)
    merges: tuple[int, int] = (0, 0)
    broadcast: State = field(default_factory=dict)
    round: int
    rate: float = 0.0
    epochs: int | None = None
    frozen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    proximal_mu: float = 0.0
    clipping_norm: float | None = None
    taken: int | None = None
    views: tuple[str, ...] | None = None
    others: Mapping[str, ConfigValue] = field(default_factory=dict)


class Writer:
    """Writes the messages of a round; tensors for several clients become one record.

    Args:
        layout: The layout of all exchanged tensors.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._records: dict[object, tuple[Sequence[State], ArrayRecord]] = {}

    def write(self, message: RoundMessage, rank: int | None) -> RecordDict:
        """Writes the message to one client.

        Args:
            message: The message.
            rank: The client's own rank, to which low-rank matrices are cut; None if it has the
                run's.
        """
        records: dict[str, Record] = {
            messages.ARRAYS: self._record(
                (message.tensors,), rank, lambda: cut(message.tensors, rank)
            )
        }
        if message.broadcast:
            records[messages.BROADCAST] = self._record(
                (message.broadcast,),
                rank,
                lambda: cut(_picked(message.broadcast, self._layout.names), rank),
            )
        if message.merged:
            ends = (MERGED_A, MERGED_B)
            order = [path + end for path in pairs_of(self._layout) for end in ends]
            records[messages.MERGED] = self._record(
                message.merged, None, lambda: _picked(join(message.merged), order)
            )
        if message.increments:
            records[messages.INCREMENTS] = self._record(
                (message.increments,),
                None,
                lambda: _picked(message.increments, pairs_of(self._layout)),
            )
        records[messages.CONFIG] = ConfigRecord(self._scalars(message))
        return RecordDict(records)

    def _record(
        self, states: Sequence[State], rank: int | None, make: Callable[[], State]
    ) -> ArrayRecord:
        """Returns the record of some tensors; the same tensors have the same record."""
        key = (rank, *(id(tensor) for state in states for tensor in state.values()))
        if key not in self._records:  # the states are kept as well, so that no id is used again
            self._records[key] = (states, StateRecord(make()))
        return self._records[key][1]

    def _scalars(self, message: RoundMessage) -> dict[str, ConfigValue]:
        """Returns the scalars of a message, without those that have no value."""
        cached = message.cached
        stated: dict[str, ConfigValue | None] = {
            SERVER_ROUND: message.round,
            LEARNING_RATE: message.rate or None,
            LOCAL_EPOCHS: message.epochs,
            messages.CLIPPING_NORM: message.clipping_norm,
            messages.VIEWS: None if message.views is None else list(message.views),
            **message.others,
            messages.FROZEN: list(message.frozen) or None,
            messages.RESTARTED: list(message.restarted) or None,
            PROXIMAL_MU: message.proximal_mu or None,
            messages.CACHED: self._layout.mark(cached) if cached else None,
            messages.CACHED_SINCE: message.since if cached else None,
            messages.TAKEN: message.taken,
            messages.MERGES: list(message.merges) if message.merges[1] else None,
            messages.MERGED_RANKS: self._ranks(message) or None,
        }
        return {name: value for name, value in stated.items() if value is not None}

    def _ranks(self, message: RoundMessage) -> list[int]:
        """Returns the ranks of merged pairs by round and path; of increments, 1 for each path."""
        paths = pairs_of(self._layout)
        if message.increments:
            return [int(path in message.increments) for path in paths]
        return [len(each.get(path + MERGED_A, ())) for each in message.merged for path in paths]


def read(content: RecordDict, layout: Layout, rank: int | None) -> RoundMessage:
    """Reads at a client what `Writer.write` wrote.

    Args:
        content: The records of the message.
        layout: The layout of all exchanged tensors.
        rank: The client's own rank; None if it has the run's.

    Raises:
        ValueError: If the message does not hold the expected tensors.
    """
    config, arrays = content.config_records[messages.CONFIG], content.array_records
    stated = read_scalars(config)
    layouts = MessageLayouts.of(config, layout, rank)

    def tensors(record: str) -> State:
        return state_in(arrays.get(record), lambda: layouts.of_record(record))

    pairs = messages.MERGED in arrays
    return replace(
        stated,
        tensors=_filled(tensors(messages.ARRAYS), layout, rank),
        cached=layouts.cached,
        merged=tuple(part(tensors(messages.MERGED), layouts.merged_ranks)) if pairs else (),
        increments=tensors(messages.INCREMENTS) if messages.INCREMENTS in arrays else {},
        broadcast=_filled(tensors(messages.BROADCAST), layout, rank)
        if messages.BROADCAST in arrays
        else {},
    )


def read_scalars(config: Mapping[str, Any]) -> RoundMessage:
    """Reads the scalars of a message, without its tensors.

    Args:
        config: The scalars by name, as they are sent or as the server loop states them.

    Raises:
        ValueError: If the number of epochs is not a whole number from 1.
    """
    known, merges = config.get(messages.MERGES) or (0, 0)
    return RoundMessage(
        since=int(config.get(messages.CACHED_SINCE, 0)),
        merges=(int(known), int(merges)),
        round=int(config.get(SERVER_ROUND, 0)),
        rate=float(config.get(LEARNING_RATE, 0.0)),
        epochs=_epochs(config),
        frozen=tuple(config.get(messages.FROZEN, ())),
        restarted=tuple(config.get(messages.RESTARTED, ())),
        proximal_mu=float(config.get(PROXIMAL_MU, 0.0)),
        clipping_norm=_if_given(float, config.get(messages.CLIPPING_NORM)),
        taken=_if_given(int, config.get(messages.TAKEN)),
        views=_if_given(tuple, config.get(messages.VIEWS)),
        others={name: value for name, value in config.items() if name not in NAMED},
    )


def _epochs(config: Mapping[str, Any]) -> int | None:
    """Reads how many passes over the shard a strategy asks for.

    Raises:
        ValueError: If it is not a whole number from 1.
    """
    epochs = config.get(LOCAL_EPOCHS)
    if epochs is None or (isinstance(epochs, int) and epochs >= 1):
        return epochs
    raise ValueError(f"message refused: {LOCAL_EPOCHS} is {epochs!r}")


def _if_given(make: Callable[[Any], T], value: Any) -> T | None:
    """Returns a value in another type; None if there is no value."""
    return None if value is None else make(value)


def _picked(state: Mapping[str, Tensor], order: Iterable[str]) -> State:
    """Returns the tensors of a state in another order."""
    return {name: state[name] for name in order if name in state}


def _filled(tensors: State, layout: Layout, rank: int | None) -> State:
    """Fills tensors that were cut to a rank with zeros, up to the full shape."""
    return tensors if rank is None else pad(tensors, layout.empty())
