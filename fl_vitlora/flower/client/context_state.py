"""The memory of a client between rounds: records in its Flower context, which it never sends.

================  ===============================================================================
``kept``          trained tensors that the client never sends: a local patch embedding, or tensors
                  that the strategy keeps at the clients
``rested``        tensors that rested in the client's last round, with names and round
``increments``    the sum merged into frozen weights so far, and the number of merged rounds
``own``           the memory of the strategy's client half (`Strategy.report`)
``held-...``      the values of a stream after its last change, and their version
``withheld-...``  what codecs withheld from updates, and the round of the last update
``before-...``    ``kept``, ``own`` and ``withheld-...`` before the last round; they are restored
                  if the server did not take that round's update
================  ===============================================================================
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
        context: The Flower context of the client.
        layout: The layout of these tensors.
        initial: The values of at least these tensors before the first round.
        taken: The round of the last update that the server took, as for `own`. So a repeated round
            begins with the same values as the first attempt.
    """
    _take_back(context, KEPT, taken)
    if messages.PACKED in context.state.array_records.get(KEPT, ()):
        return messages.from_packed(context.state, layout, record=KEPT)
    return {name: initial[name] for name, _ in layout.shapes}


def keep(
    context: Context, server_round: int, layout: Layout, trained: Mapping[str, Tensor]
) -> None:
    """Stores the tensors that this client never sends, and keeps their previous values."""
    if layout.shapes:
        _put_aside(context, KEPT)
        _write(context, KEPT, server_round, {name: trained[name] for name, _ in layout.shapes})


def complete(
    context: Context, received: RoundMessage, layout: Layout, initial: Mapping[str, Tensor]
) -> State:
    """Returns the model of a round, from sent, remembered and initial tensors.

    Args:
        context: The Flower context of the client.
        received: The content of the instruction.
        layout: The layout of all exchanged tensors.
        initial: The values before the first round, zero beyond the client's rank.

    Returns:
        All exchanged tensors, in the layout's order.

    Raises:
        ValueError: If the server relies on a round that the client does not remember.
    """
    rested = _read(context, RESTED, received.since, layout) if received.since else {}
    cached = {name: rested.get(name, initial[name]) for name in received.cached}
    return {name: (received.tensors | cached)[name] for name, _ in layout.shapes}


def rest(context: Context, server_round: int, rested: State) -> None:
    """Stores the tensors that rested in a round."""
    _write(context, RESTED, server_round, rested)


def merge(context: Context, received: RoundMessage, layout: Layout) -> State:
    """Adds the merged pairs of an instruction to earlier ones, and returns their sum by path.

    Args:
        context: The Flower context of the client.
        received: The content of the instruction, with pairs and the number of rounds that the
            server assumes the client has.
        layout: The layout of all exchanged tensors.

    Raises:
        ValueError: If the client has the pairs of another number of rounds.
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


def own(context: Context, taken: int | None) -> State:
    """Returns the memory of the strategy's client half; an empty state at first.

    Args:
        context: The Flower context of the client.
        taken: The round of the last update that the server took; None if the server does not say.
            Memory of a later round is dropped, because the server lacks that round's report.
    """
    _take_back(context, OWN, taken)
    if OWN not in context.state.array_records:
        return {}
    return dict(context.state.array_records[OWN].to_torch_state_dict())


def keep_own(context: Context, server_round: int, memory: State) -> None:
    """Stores the memory of the strategy's client half, and keeps the previous memory."""
    if not memory and OWN not in context.state.array_records:
        return
    _put_aside(context, OWN)
    context.state[OWN] = messages.to_arrays({n: _storable(t) for n, t in memory.items()})
    context.state[OWN + WHICH] = ConfigRecord({NUMBER: server_round})


def held(context: Context, record: str, version: int, layout: Layout) -> State:
    """Returns the values of a stream after its last change.

    Args:
        context: The Flower context of the client.
        record: The name of the record that is sent as a stream.
        version: The version that the server assumes the client has.
        layout: The layout of all tensors of the stream.

    Raises:
        ValueError: If the client has another version.
    """
    return _read(context, HELD + record, version, layout)


def hold(context: Context, record: str, version: int, values: State) -> None:
    """Stores the values of a stream at a version."""
    _write(context, HELD + record, version, values)


def withheld(context: Context, record: str, layout: Layout, taken: int | None) -> State:
    """Returns what codecs withheld from the updates of this client.

    Args:
        context: The Flower context of the client.
        record: The name of the record that the client sends.
        layout: The layout of all tensors that the record may hold.
        taken: The round of the last update that the server took, as for `own`. If an update was
            lost, what it withheld is dropped; what was withheld before it will still be sent.
    """
    _take_back(context, WITHHELD + record, taken)
    if not _round_of(context, WITHHELD + record):
        return {}
    return _read(context, WITHHELD + record, _round_of(context, WITHHELD + record), layout)


def withhold(context: Context, record: str, server_round: int, tensors: State) -> None:
    """Stores what codecs withheld in a round, and keeps what they withheld before."""
    if not tensors and WITHHELD + record not in context.state.array_records:
        return
    _put_aside(context, WITHHELD + record)
    _write(context, WITHHELD + record, server_round, tensors)


def _put_aside(context: Context, record: str) -> None:
    """Copies a record under `BEFORE`; a missing record counts as an empty one of round 0."""
    context.state[BEFORE + record] = context.state.array_records.get(record, ArrayRecord())
    which = context.state.config_records.get(record + WHICH, ConfigRecord({NUMBER: 0}))
    context.state[BEFORE + record + WHICH] = which


def _take_back(context: Context, record: str, taken: int | None) -> None:
    """Restores a record's previous value, if the server did not take the last round's update."""
    if taken is not None and _round_of(context, record) > taken:
        for end in ("", WHICH):
            context.state[record + end] = context.state[BEFORE + record + end]


def _round_of(context: Context, record: str) -> int:
    """Returns the round in which a record was stored; 0 for none."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    return int(cast(int, which.get(NUMBER, 0)))


def _storable(tensor: Tensor) -> Tensor:
    """Returns a tensor in a type that Flower's arrays have: bfloat16 becomes float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _write(context: Context, record: str, number: int, tensors: State) -> None:
    """Stores tensors, with the number of their round, version or count."""
    context.state[record] = messages.to_packed(tensors)
    context.state[record + WHICH] = ConfigRecord({NUMBER: number, NAMES: list(tensors)})


def _read(context: Context, record: str, number: int, layout: Layout) -> State:
    """Returns the tensors that `_write` stored, and checks their number."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    if which.get(NUMBER) != number:
        known = f"those of {which[NUMBER]!r}" if which else "nothing"
        raise ValueError(
            f"message refused: it relies on {record} of round {number}, and this client remembers "
            f"{known}"
        )
    names = frozenset(cast(list[str], which[NAMES]))
    return messages.from_packed(context.state, layout.only(names), record=record)
