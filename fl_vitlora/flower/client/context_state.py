"""The memory of a client between rounds: records in its Flower context, which are never sent.

================  ===============================================================================
``kept``          trained tensors that the client never sends: a local patch embedding, or tensors
                  that the strategy keeps at the clients
``rested``        tensors that were frozen in the client's last round, with names and round
``increments``    the sum merged into frozen weights so far, and the number of merged rounds
``own``           the memory of the strategy's code at the client (`Strategy.report`)
``held-...``      the tensors of a stream after its last change, and their version
``withheld-...``  the part of the updates that codecs did not send, and the round of the last update
``before-...``    ``kept``, ``own`` and ``withheld-...`` before the last round; they are restored
                  if the server did not use the update of the last round
================  ===============================================================================

A stream is a series of compressed changes that the server sends (`communication.stream`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.global_model import added
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import products_layout
from fl_vitlora.flower.wire.round_message import RoundMessage
from fl_vitlora.state import State

KEPT, RESTED, INCREMENTS, OWN = "kept", "rested", "increments", "own"
HELD, WITHHELD, BEFORE = "held-", "withheld-", "before-"
WHICH = "-which"  # ending of a second record: the names of the tensors, and a number
NAMES, NUMBER = "names", "number"


def kept(
    context: Context, layout: Layout, initial: Mapping[str, Tensor], taken: int | None
) -> State:
    """Returns the trained tensors that this client never sends.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        layout: The names and shapes of the tensors that this client never sends.
        initial: The tensors that this client never sends, before the first round; the mapping may
            contain other tensors too.
        taken: The round of this client's last update that the server used; None if the server used
            the update of the client's last round. Tensors that the client stored in a later round
            are dropped, so that a repeated round begins with the same tensors as the first attempt.
    """
    _take_back(context, KEPT, taken)
    if messages.PACKED in context.state.array_records.get(KEPT, ()):
        return messages.from_packed(context.state, layout, record=KEPT)
    return {name: initial[name] for name, _ in layout.shapes}


def keep(
    context: Context, server_round: int, layout: Layout, trained: Mapping[str, Tensor]
) -> None:
    """Stores the tensors that this client never sends, and keeps a copy of the previous tensors."""
    if layout.shapes:
        _put_aside(context, KEPT)
        _write(context, KEPT, server_round, {name: trained[name] for name, _ in layout.shapes})


def complete(
    context: Context, received: RoundMessage, layout: Layout, initial: Mapping[str, Tensor]
) -> State:
    """Returns the model of a round, made of received, remembered and initial tensors.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        received: The message with the server's instruction.
        layout: The names and shapes of all exchanged tensors.
        initial: The tensors before the first round; rows beyond the client's rank are zero.

    Returns:
        All exchanged tensors, in the layout's order.

    Raises:
        ValueError: If the server relies on a round that the client does not remember.
    """
    rested = _read(context, RESTED, received.since, layout) if received.since else {}
    cached = {name: rested.get(name, initial[name]) for name in received.cached}
    return {name: (received.tensors | cached)[name] for name, _ in layout.shapes}


def rest(context: Context, server_round: int, rested: State) -> None:
    """Stores the tensors that were frozen in a round."""
    _write(context, RESTED, server_round, rested)


def merge(context: Context, received: RoundMessage, layout: Layout) -> State:
    """Adds the low-rank products of an instruction to the products of earlier instructions.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        received: The message with the server's instruction. The message contains low-rank pairs,
            and the number of rounds whose pairs the client should already have.
        layout: The names and shapes of all exchanged tensors.

    Returns:
        The sum of the products of all rounds for each frozen weight, by path.

    Raises:
        ValueError: If the client has the pairs of more or fewer rounds than the instruction says.
    """
    known, merges = received.merges
    if not merges:
        return {}
    products = products_layout(layout)
    before = _read(context, INCREMENTS, known, products) if known else received.increments
    if known == merges:
        return before
    after = functools.reduce(added, received.merged, before)
    increments = {path: after[path] for path, _ in products.shapes if path in after}
    _write(context, INCREMENTS, merges, increments)
    return increments


def own(context: Context, taken: int | None, frozen: frozenset[str] = frozenset()) -> State:
    """Returns the memory of the strategy's code at the client; empty before the first round.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        frozen: The names of the tensors that are frozen in this round; they are left out.
        taken: The round of this client's last update that the server used; None if the server used
            the update of the client's last round. Memory that the client stored in a later round is
            dropped, because the server did not use the report of the later round.
    """
    _take_back(context, OWN, taken)
    if OWN not in context.state.array_records:
        return {}
    stored = context.state.array_records[OWN].to_torch_state_dict()
    return {name: tensor for name, tensor in stored.items() if name not in frozen}


def keep_own(
    context: Context, server_round: int, memory: State, frozen: frozenset[str] = frozenset()
) -> None:
    """Stores the memory of the strategy's code at the client, and keeps the previous memory.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        server_round: The number of the round, from 1.
        memory: The new memory, without the tensors that `own` has left out.
        frozen: The names of the tensors that are frozen in this round. The stored memory of these
            tensors does not change.
    """
    if not memory and OWN not in context.state.array_records:
        return
    resting = {n: t for n, t in own(context, None).items() if n in frozen}
    whole = {**resting, **{name: _storable(tensor) for name, tensor in memory.items()}}
    _put_aside(context, OWN)
    context.state[OWN] = messages.to_arrays(whole)
    context.state[OWN + WHICH] = ConfigRecord({NUMBER: server_round})


def held(context: Context, record: str, version: int, layout: Layout) -> State:
    """Returns the tensors that a stream (a series of compressed changes) has built so far.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        record: The name of the record that is sent as a stream.
        version: The version of the stream that the client should have.
        layout: The names and shapes of all tensors of the stream.

    Raises:
        ValueError: If the client has another version of the stream.
    """
    return _read(context, HELD + record, version, layout)


def hold(context: Context, record: str, version: int, values: State) -> None:
    """Stores the tensors of a stream, a series of compressed changes, and the stream's version."""
    _write(context, HELD + record, version, values)


def withheld(context: Context, record: str, layout: Layout, taken: int | None) -> State:
    """Returns the part of this client's updates that codecs did not send.

    Args:
        context: The Flower context of the client, which stores its memory between rounds.
        record: The name of the record that the client sends.
        layout: The names and shapes of all tensors that the record may hold.
        taken: The round of this client's last update that the server used; None if the server used
            the update of the client's last round. If a later update was lost, the unsent part of
            the lost update is dropped. The part that was unsent before the lost update will still
            be sent.
    """
    _take_back(context, WITHHELD + record, taken)
    if not _round_of(context, WITHHELD + record):
        return {}
    return _read(context, WITHHELD + record, _round_of(context, WITHHELD + record), layout)


def withhold(context: Context, record: str, server_round: int, tensors: State) -> None:
    """Stores the part that codecs did not send in a round, and keeps the previous part."""
    if not tensors and WITHHELD + record not in context.state.array_records:
        return
    _put_aside(context, WITHHELD + record)
    _write(context, WITHHELD + record, server_round, tensors)


def _put_aside(context: Context, record: str) -> None:
    """Copies a record to the name that begins with `BEFORE`; an empty record if there is none."""
    context.state[BEFORE + record] = context.state.array_records.get(record, ArrayRecord())
    which = context.state.config_records.get(record + WHICH, ConfigRecord({NUMBER: 0}))
    context.state[BEFORE + record + WHICH] = which


def _take_back(context: Context, record: str, taken: int | None) -> None:
    """Restores the previous record if the server did not use the update of the last round."""
    if taken is not None and _round_of(context, record) > taken:
        for end in ("", WHICH):
            context.state[record + end] = context.state[BEFORE + record + end]


def _round_of(context: Context, record: str) -> int:
    """Returns the round in which a record was stored; 0 if the record does not exist."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    return int(cast(int, which.get(NUMBER, 0)))


def _storable(tensor: Tensor) -> Tensor:
    """Returns a tensor in a data type that Flower's arrays support: bfloat16 becomes float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _write(context: Context, record: str, number: int, tensors: State) -> None:
    """Stores tensors with a number: a round, a version or a number of merged rounds."""
    context.state[record] = messages.to_packed(tensors)
    context.state[record + WHICH] = ConfigRecord({NUMBER: number, NAMES: list(tensors)})


def _read(context: Context, record: str, number: int, layout: Layout) -> State:
    """Returns the tensors that `_write` stored, if they were stored with the given number."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    if which.get(NUMBER) != number:
        known = f"number {which[NUMBER]!r}" if which else "nothing"
        raise ValueError(
            f"message refused: it relies on the stored record {record} number {number}, but this "
            f"client has stored {known}"
        )
    names = frozenset(cast(list[str], which[NAMES]))
    return messages.from_packed(context.state, layout.only(names), record=record)
