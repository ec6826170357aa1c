"""What a client remembers from round to round: records in its Flower context, which never leave it.

================  ===============================================================================
``kept``          trained tensors that it never sends: a local patch embedding, or what a strategy
                  leaves to its clients
``rested``        tensors that rested in its last round, and which these were, and when
``increments``    what was merged into its frozen weights so far, and of how many rounds
``own``           what the strategy's client half remembers (`Strategy.report`)
``held-...``      values that the changes of a stream led to, and to which version
``withheld-...``  what codecs kept back of what it sent, and in which round
``before-...``    ``kept``, ``own`` and ``withheld-...`` as they were before its last round, should
                  the server not have taken that
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
from fl_vitlora.flower.wire.contents import Received
from fl_vitlora.flower.wire.layouts import products_layout
from fl_vitlora.state import State

KEPT, RESTED, INCREMENTS, OWN = "kept", "rested", "increments", "own"
HELD, WITHHELD, BEFORE = "held-", "withheld-", "before-"
WHICH = "-which"  # beside a record: names of its tensors, and a number
NAMES, NUMBER = "names", "number"


def kept(
    context: Context, layout: Layout, initial: Mapping[str, Tensor], taken: int | None
) -> State:
    """Returns the tensors that only this client has.

    Args:
        context: The client's.
        layout: Of these tensors.
        initial: Their values before its first round, among others.
        taken: As for `own`: a round that is repeated begins with what the first attempt began with.
    """
    _take_back(context, KEPT, taken)
    if messages.PACKED in context.state.array_records.get(KEPT, ()):
        return messages.from_packed(context.state, layout, record=KEPT)
    return {name: initial[name] for name, _ in layout.shapes}


def keep(
    context: Context, server_round: int, layout: Layout, trained: Mapping[str, Tensor]
) -> None:
    """Stores the tensors that only this client has, beside what they were before."""
    if layout.shapes:
        _put_aside(context, KEPT)
        _write(context, KEPT, server_round, {name: trained[name] for name, _ in layout.shapes})


def complete(
    context: Context, received: Received, layout: Layout, initial: Mapping[str, Tensor]
) -> State:
    """Puts together what was sent, what rested with the client, and initial values.

    Args:
        context: The client's.
        received: What was sent.
        layout: Of all exchanged tensors.
        initial: Values before the first round, zero beyond the client's rank.

    Returns:
        All exchanged tensors, in the layout's order.

    Raises:
        ValueError: If the server relies on a round that the client does not remember.
    """
    rested = _read(context, RESTED, received.since, layout) if received.since else {}
    cached = {name: rested.get(name, initial[name]) for name in received.cached}
    return {name: (received.tensors | cached)[name] for name, _ in layout.shapes}


def rest(context: Context, server_round: int, rested: State) -> None:
    """Stores what rested in a round."""
    _write(context, RESTED, server_round, rested)


def merge(context: Context, received: Received, layout: Layout) -> State:
    """Adds the pairs that were sent to what was merged before, and returns all of it, by path.

    Args:
        context: The client's.
        received: Pairs, and of how many rounds it is taken to have them already.
        layout: Of all exchanged tensors.

    Raises:
        ValueError: If the server takes it to have others than it has.
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
    """Returns what the strategy's client half remembers; nothing at first.

    Args:
        context: The client's.
        taken: The round of the last update that the server took, if it says so. What was remembered
            in a later one is forgotten, for the server has nothing of its report.
    """
    _take_back(context, OWN, taken)
    if OWN not in context.state.array_records:
        return {}
    return dict(context.state.array_records[OWN].to_torch_state_dict())


def keep_own(context: Context, server_round: int, memory: State) -> None:
    """Stores it, beside what it was before."""
    if not memory and OWN not in context.state.array_records:
        return
    _put_aside(context, OWN)
    context.state[OWN] = messages.to_arrays({n: _storable(t) for n, t in memory.items()})
    context.state[OWN + WHICH] = ConfigRecord({NUMBER: server_round})


def held(context: Context, record: str, version: int, layout: Layout) -> State:
    """Returns the values that the changes of a stream led to.

    Args:
        context: The client's.
        record: That comes as a stream.
        version: The server takes the client to have.
        layout: Of all its tensors.

    Raises:
        ValueError: If the client has another one.
    """
    return _read(context, HELD + record, version, layout)


def hold(context: Context, record: str, version: int, values: State) -> None:
    """Stores them."""
    _write(context, HELD + record, version, values)


def withheld(context: Context, record: str, layout: Layout, taken: int | None) -> State:
    """Returns what codecs kept back of what this client sent.

    Args:
        context: The client's.
        record: That it sends.
        layout: Of all tensors that may stand in it.
        taken: As for `own`: what was kept back of an update that was lost is lost with it, and
            what was kept back before is still to be sent.
    """
    _take_back(context, WITHHELD + record, taken)
    if not _round_of(context, WITHHELD + record):
        return {}
    return _read(context, WITHHELD + record, _round_of(context, WITHHELD + record), layout)


def withhold(context: Context, record: str, server_round: int, tensors: State) -> None:
    """Stores it, beside what it was before."""
    if not tensors and WITHHELD + record not in context.state.array_records:
        return
    _put_aside(context, WITHHELD + record)
    _write(context, WITHHELD + record, server_round, tensors)


def _put_aside(context: Context, record: str) -> None:
    """Keeps a record as it is now; what is not there yet stands for round 0."""
    context.state[BEFORE + record] = context.state.array_records.get(record, ArrayRecord())
    which = context.state.config_records.get(record + WHICH, ConfigRecord({NUMBER: 0}))
    context.state[BEFORE + record + WHICH] = which


def _take_back(context: Context, record: str, taken: int | None) -> None:
    """Puts a record back to what it was before its last round, if the server did not take that."""
    if taken is not None and _round_of(context, record) > taken:
        for end in ("", WHICH):
            context.state[record + end] = context.state[BEFORE + record + end]


def _round_of(context: Context, record: str) -> int:
    """Returns the round in which a record was stored; 0 for none."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    return int(cast(int, which.get(NUMBER, 0)))


def _storable(tensor: Tensor) -> Tensor:
    """Writes what Flower's arrays do not know, bfloat16, as float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _write(context: Context, record: str, number: int, tensors: State) -> None:
    """Stores tensors with the round, or the count, that they stand for."""
    context.state[record] = messages.to_packed(tensors)
    context.state[record + WHICH] = ConfigRecord({NUMBER: number, NAMES: list(tensors)})


def _read(context: Context, record: str, number: int, layout: Layout) -> State:
    """Reads what `_write` stored, if it stands for the number that is asked for."""
    which = context.state.config_records.get(record + WHICH, ConfigRecord())
    if which.get(NUMBER) != number:
        known = f"those of {which[NUMBER]!r}" if which else "nothing"
        raise ValueError(
            f"message refused: it relies on {record} of round {number}, and this client remembers "
            f"{known}"
        )
    names = frozenset(cast(list[str], which[NAMES]))
    return messages.from_packed(context.state, layout.only(names), record=record)
