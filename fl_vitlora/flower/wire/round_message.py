"""The message from the server to one client in one round, with a writer and a reader for it.

The server makes a `RoundMessage` (`server.composing`), and `Writer.write` converts it to records.
At the client, `read` converts the records to a `RoundMessage` that is equal to the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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
from fl_vitlora.privacy.agreement import Assignment
from fl_vitlora.state import State

T = TypeVar("T")
Record = ArrayRecord | MetricRecord | ConfigRecord
NAMED = frozenset(  # the names of the scalars that are fields of `RoundMessage`
    {
        SERVER_ROUND,
        LEARNING_RATE,
        LOCAL_EPOCHS,
        PROXIMAL_MU,
        messages.CLIPPING_NORM,
        messages.VIEWS,
        messages.MOST,
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
    """The message to one client in one round.

    Attributes:
        tensors: The tensors of the model that are sent, in full shape (not cut to the client's
            rank).
        cached: The names of the tensors that are not sent, because the client has them.
        since: The round in which the client stored the cached tensors; 0 if the cached tensors are
            the initial tensors.
        merged: The low-rank pairs to be added to frozen weights, one state for each round, in the
            order of the rounds.
        increments: The sum to be added to each pre-trained weight, by path. Increments are sent in
            place of pairs if increments need fewer bytes.
        merges: The number of merged rounds that the client already has, and the number after this
            message. If the first number is 0, the client begins with the pre-trained weights.
        broadcast: The tensors that the strategy sends in addition to the model, in full shape (not
            cut to the client's rank).
        round: The number of the round, from 1.
        rate: The learning rate; 0 if the client does not train.
        epochs: The number of passes over the shard; None for the number in the settings.
        frozen: The endings of the names of tensors that are frozen in this round.
        restarted: The endings of the names of tensors that start every round at their first values.
        proximal_mu: The weight of the proximal penalty.
        clipping_norm: The norm that updates must not exceed; None if no strategy of Flower sets it.
        taken: The round of this client's last update that the server used; None if the server used
            the last update that it asked for. The server did not use any later update of the
            client.
        views: The views of images on which the client evaluates the model; None if the client
            trains.
        most: The number of images of each view with which the client evaluates the model; None for
            all images of the client.
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
    most: int | None = None
    others: Mapping[str, ConfigValue] = field(default_factory=dict)

    @property
    def assignment(self) -> Assignment:
        """All that the message says about the client's work, apart from the tensors.

        The endings are sorted, because their order in a message has no meaning.
        """
        stated = {each.name: getattr(self, each.name) for each in fields(Assignment)}
        return Assignment(
            **stated
            | {"frozen": tuple(sorted(self.frozen)), "restarted": tuple(sorted(self.restarted))}
            | {"merges": self.merges[1]}
        )


class Writer:
    """Writes the messages of a round. Tensors for several clients are converted only once.

    Args:
        layout: The names and shapes of all exchanged tensors.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._records: dict[object, tuple[Sequence[State], ArrayRecord]] = {}

    def write(self, message: RoundMessage, rank: int | None) -> RecordDict:
        """Writes the message to one client.

        Args:
            message: The content of the message.
            rank: The client's own rank, to which low-rank matrices are cut; None if the client has
                the rank of the run.
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
        """Returns a record of tensors, which is made only once for the same tensor objects."""
        key = (rank, *(id(tensor) for state in states for tensor in state.values()))
        if key not in self._records:  # keeping the states prevents a reuse of their ids
            self._records[key] = (states, StateRecord(make()))
        return self._records[key][1]

    def _scalars(self, message: RoundMessage) -> dict[str, ConfigValue]:
        """Returns the scalars of a message that have a value."""
        cached = message.cached
        stated: dict[str, ConfigValue | None] = {
            SERVER_ROUND: message.round,
            LEARNING_RATE: message.rate if message.views is None else message.rate or None,
            LOCAL_EPOCHS: message.epochs,
            messages.CLIPPING_NORM: message.clipping_norm,
            messages.VIEWS: None if message.views is None else list(message.views),
            messages.MOST: message.most,
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
        """Returns the ranks of merged pairs by round and path; an increment counts as rank 1."""
        paths = pairs_of(self._layout)
        if message.increments:
            return [int(path in message.increments) for path in paths]
        return [len(each.get(path + MERGED_A, ())) for each in message.merged for path in paths]


def read(content: RecordDict, layout: Layout, rank: int | None) -> RoundMessage:
    """Reads, at a client, the message that `Writer.write` wrote.

    Args:
        content: The records of the message.
        layout: The names and shapes of all exchanged tensors.
        rank: The client's own rank; None if the client has the rank of the run.

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
        config: The scalars by name, from a message or from the server loop.

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
        most=_if_given(int, config.get(messages.MOST)),
        others={name: value for name, value in config.items() if name not in NAMED},
    )


def check_asks_to_train(config: Mapping[str, Any]) -> None:
    """Checks that an instruction to train is complete, and is no instruction to evaluate.

    The guard demands less of a model that a client only evaluates. So a client must not train with
    a message that names views of images, which only an instruction to evaluate has.

    Args:
        config: The scalars of the message, by name.

    Raises:
        ValueError: If the number of the round or the learning rate is missing, or if the message
            names views of images.
    """
    for name in (SERVER_ROUND, LEARNING_RATE):
        if name not in config:
            raise ValueError(f"message refused: it lacks {name}, without which no client trains")
    if messages.VIEWS in config:
        raise ValueError("message refused: it asks a client to train, but names images to evaluate")


def _epochs(config: Mapping[str, Any]) -> int | None:
    """Reads the number of passes over the shard that a strategy asks for.

    Raises:
        ValueError: If the number is not a whole number from 1.
    """
    epochs = config.get(LOCAL_EPOCHS)
    if epochs is None or (isinstance(epochs, int) and epochs >= 1):
        return epochs
    raise ValueError(
        f"message refused: {LOCAL_EPOCHS} must be a whole number from 1, got {epochs!r}"
    )


def _if_given(make: Callable[[Any], T], value: Any) -> T | None:
    """Returns `make(value)`, or None if the value is None."""
    return None if value is None else make(value)


def _picked(state: Mapping[str, Tensor], order: Iterable[str]) -> State:
    """Returns the tensors of a state in a given order of names; missing names are skipped."""
    return {name: state[name] for name in order if name in state}


def _filled(tensors: State, layout: Layout, rank: int | None) -> State:
    """Fills tensors that were cut to a rank with zeros, up to the full shape."""
    return tensors if rank is None else pad(tensors, layout.empty())
