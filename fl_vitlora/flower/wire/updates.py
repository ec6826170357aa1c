"""Writes the content of a client's reply, and reads it at the server.

The reply contains the change of the tensors during training, and the strategy's report. For a
client of a smaller rank, each low-rank matrix is cut to that rank. The module `round_message`
writes and reads the messages from the server to a client.
"""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.reported_counts import Counts, check_images, read_loss, read_steps
from fl_vitlora.flower.wire.state_record import StateRecord, state_in
from fl_vitlora.lowrank import cut, pad
from fl_vitlora.state import State, is_finite, is_within
from fl_vitlora.strategy import Update

# The largest number allowed in an update. No trained weight changes by so much, and no gradient is
# so large. If one client reports this number, a float32 sum still has a resolution of 1/16 for the
# numbers of the other clients.
LARGEST = 1e6


def write_update(
    *,
    delta: State,
    report: State,
    samples: int,
    loss: float,
    steps: int,
    rank: int | None,
    clipped: bool | None = None,
) -> RecordDict:
    """Writes a client's reply.

    Args:
        delta: The tensors after training minus the tensors before training, without the tensors
            that were frozen.
        report: The strategy's report: tensors with the names of `delta` in the same order, or an
            empty state.
        samples: The number of images that the client trained on.
        loss: The mean training loss.
        steps: The number of optimiser steps.
        rank: The client's own rank; None if the client has the rank of the run.
        clipped: True if `delta` was clipped to a norm; None if the server did not ask for clipping.
    """
    metrics = MetricRecord({messages.SAMPLES: samples, messages.LOSS: loss, messages.STEPS: steps})
    if clipped is not None:
        metrics[messages.NORM_BIT] = int(clipped)
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        messages.ARRAYS: StateRecord(cut(delta, rank)),
        messages.METRICS: metrics,
    }
    if report:
        records[messages.REPORT] = StateRecord(cut(report, rank))
    return RecordDict(records)


def read_update(
    content: RecordDict,
    layouts: MessageLayouts,
    asked: Instruction,
    *,
    population: int,
    expected: Counts,
) -> Update:
    """Reads, at the server, the reply that `write_update` wrote.

    Args:
        content: The records of the reply.
        layouts: The names and shapes of the tensors in the instruction and in the reply.
        asked: The instruction that was sent to the client.
        population: The number of clients in the whole run.
        expected: The numbers of images and steps that the update must state.

    Raises:
        ValueError: If the reply is not a usable update.
    """
    delta = _read_tensors(content, layouts, messages.ARRAYS)
    given = messages.REPORT in content.array_records
    report = _read_tensors(content, layouts, messages.REPORT) if given else {}
    refuse_absurd(delta, report)
    metrics = messages.metrics_of(content)
    check_images(metrics, expected)
    steps, loss = read_steps(metrics, expected), read_loss(metrics)
    if messages.CLIPPING_NORM in asked.config:
        report = _norm_bit(metrics)
    return Update(
        client=asked.client,
        samples=expected.images,
        loss=loss,
        delta=delta,
        steps=steps,
        rank=layouts.rank,
        report=report,
        population=population,
    )


def refuse_absurd(*states: State) -> None:
    """Refuses tensors that would ruin a sum.

    A client checks its tensors before it sends them, and the server checks them again.

    Raises:
        ValueError: If a tensor holds NaN, infinity, or a number larger than training produces.
    """
    if all(is_within(state, LARGEST) for state in states):
        return
    number = f"a number beyond {LARGEST:g}" if all(map(is_finite, states)) else "NaN or infinity"
    raise ValueError(f"its update holds {number}; a smaller learning rate may help")


def _norm_bit(metrics: MetricRecord) -> State:
    """Reads the "norm bit", which is 1 if the client clipped its update, else 0.

    Flower's strategies for differential privacy need the norm bit.
    """
    bit = messages.scalar(metrics, messages.NORM_BIT)
    if bit not in (0, 1):
        raise ValueError(f"it must report a norm bit of 0 or 1, got {bit}")
    return {messages.NORM_BIT: torch.tensor(bit)}


def _read_tensors(content: RecordDict, layouts: MessageLayouts, record: str) -> State:
    """Reads the tensors of a record, with zeros beyond the client's rank."""
    tensors = state_in(content.array_records.get(record), lambda: layouts.of_reply(record))
    return tensors if layouts.rank is None else pad(tensors, layouts.exchanged.empty())
