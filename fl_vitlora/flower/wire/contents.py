"""The contents of a round's messages, with writer and reader of each side by side.

An instruction holds the tensors that a client lacks (`federation.client_records`), the strategy's
broadcast, pairs to merge into frozen weights, and the plan of the round. An update holds the
difference that training made, and the strategy's report. For a client of a smaller rank, each
low-rank matrix is cut to that rank in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.client_records import Memory
from fl_vitlora.federation.global_model import GlobalModel, join, part
from fl_vitlora.federation.instruction import (
    LEARNING_RATE,
    LOCAL_EPOCHS,
    PROXIMAL_MU,
    ConfigValue,
    Instruction,
)
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import (
    cached_of,
    frozen_of,
    instruction_layouts,
    integers_of,
    merged_ranks,
    number_of,
    pairs_of,
    round_of,
    taken_of,
    update_layouts,
)
from fl_vitlora.flower.wire.reported_counts import Counts, check_images, read_loss, read_steps
from fl_vitlora.lowrank import MERGED_A, MERGED_B, cut, pad
from fl_vitlora.state import State, is_finite, is_within
from fl_vitlora.strategy import ClientPlan, Update

# No trained weight changes by so much, and no gradient is so large. If one client reports such a
# value, float32 sums still resolve a sixteenth of one for the other clients.
LARGEST = 1e6

Record = ArrayRecord | MetricRecord | ConfigRecord


@dataclass(frozen=True, kw_only=True)
class Received:
    """The content of an instruction, as a client reads it.

    Attributes:
        tensors: The tensors of the model that were sent, in full shape.
        cached: The names of the tensors that were not sent, because the client has them.
        since: The round in which the client remembered them; 0 if they have their initial values.
        merged: The pairs to be added to frozen weights, one state for each round, in order.
        increments: In place of pairs, the sum to be added to the pre-trained weights, by path.
        merges: The number of merged rounds that the client already has, and the number after this
            message. If the first number is 0, the client starts afresh.
        broadcast: The tensors that the strategy sends beside the model.
        round: The number of the round, from 1.
        rate: The learning rate.
        epochs: The number of passes over the shard; None for the run's own number.
        frozen: The endings of the names of tensors that rest.
        proximal_mu: The weight of the proximal penalty.
        clipping_norm: The norm that updates must not exceed; None without a wrapper that sets it.
        taken: The round of this client's last update that the server took; None if the server took
            the last one that it asked for. The server knows nothing of what came later.
    """

    tensors: State
    cached: frozenset[str]
    since: int
    merged: Sequence[State]
    increments: State
    merges: tuple[int, int]
    broadcast: State
    round: int
    rate: float
    epochs: int | None
    frozen: tuple[str, ...]
    proximal_mu: float
    clipping_norm: float | None
    taken: int | None


class Writer:
    """Writes the instructions of a round; tensors for several clients are packed only once.

    Args:
        layout: The layout of all exchanged tensors.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._packed: dict[object, ArrayRecord] = {}

    def write(
        self, asked: Instruction, memory: Memory, cached: frozenset[str], rank: int | None
    ) -> RecordDict:
        """Writes the message to one client.

        Args:
            asked: The instruction.
            memory: The server's record of what the client remembers.
            cached: The names of the tensors that the client already has.
            rank: The client's own rank; None if it has the run's.
        """
        model, known = asked.model, memory.merges
        config: dict[str, ConfigValue] = {**asked.config, **_config_of(asked.plan)}
        if cached:
            config[messages.CACHED] = self._layout.mark(cached)
            config[messages.CACHED_SINCE] = memory.round if memory.tensors else 0
        lacking = {name: t for name, t in model.tensors.items() if name not in cached}
        records: dict[str, Record] = {
            messages.ARRAYS: self._pack((id(model), cached, rank), lambda: cut(lacking, rank))
        }
        if memory.missed:
            config[messages.TAKEN] = memory.taken
        if asked.broadcast:
            sent = {name: asked.broadcast[name] for name, _ in self._layout.shapes}
            records[messages.BROADCAST] = self._pack(
                (id(asked.broadcast), rank), lambda: cut(sent, rank)
            )
        if model.rounds:
            config[messages.MERGES] = [known, model.rounds]
        if known < model.rounds:
            self._add_merged(model, known, records, config)
        records[messages.CONFIG] = ConfigRecord(config)
        return RecordDict(records)

    def _add_merged(
        self,
        model: GlobalModel,
        known: int,
        records: dict[str, Record],
        config: dict[str, ConfigValue],
    ) -> None:
        """Adds the merged pairs that a client lacks, or all increments where those are shorter."""
        merges, paths = model.merges_since(known), pairs_of(self._layout)
        if merges is None:
            config[messages.MERGES] = [0, model.rounds]
            config[messages.MERGED_RANKS] = [int(path in model.increments) for path in paths]
            whole = {p: model.increments[p] for p in paths if p in model.increments}
            records[messages.INCREMENTS] = self._pack((id(model), "all"), lambda: whole)
            return
        config[messages.MERGED_RANKS] = [
            len(pairs.get(path + MERGED_A, ())) for pairs in merges for path in paths
        ]
        joined = join(merges)
        order = [path + end for path in paths for end in (MERGED_A, MERGED_B)]
        records[messages.MERGED] = self._pack(
            (id(model), known), lambda: {n: joined[n] for n in order if n in joined}
        )

    def _pack(self, key: object, make: Callable[[], State]) -> ArrayRecord:
        if key not in self._packed:
            self._packed[key] = messages.to_packed(make())
        return self._packed[key]


def read_instruction(content: RecordDict, layout: Layout, rank: int | None) -> Received:
    """Reads at a client what `Writer.write` wrote.

    Args:
        content: The records of the message.
        layout: The layout of all exchanged tensors.
        rank: The client's own rank; None if it has the run's.

    Raises:
        ValueError: If the message does not hold the expected tensors.
    """
    config = content.config_records[messages.CONFIG]
    layouts = instruction_layouts(config, layout, rank)

    def unpack(record: str) -> State:
        given = record in content.array_records or record == messages.ARRAYS
        return messages.from_packed(content, layouts[record], record) if given else {}

    return Received(
        tensors=_filled(unpack(messages.ARRAYS), layout, rank),
        cached=cached_of(config, layout),
        since=int(cast(int, config.get(messages.CACHED_SINCE, 0))),
        merged=part(unpack(messages.MERGED), merged_ranks(config, layout)),
        increments=unpack(messages.INCREMENTS),
        merges=_merges(config),
        broadcast=_filled(unpack(messages.BROADCAST), layout, rank),
        round=round_of(config),
        rate=number_of(config, LEARNING_RATE) or 0.0,
        epochs=_epochs(config),
        frozen=frozen_of(config),
        proximal_mu=number_of(config, PROXIMAL_MU) or 0.0,
        clipping_norm=number_of(config, messages.CLIPPING_NORM),
        taken=taken_of(config),
    )


def _epochs(config: ConfigRecord) -> int | None:
    """Reads how many passes over the shard a strategy asks for.

    Raises:
        ValueError: If it is not a whole number from 1.
    """
    epochs = config.get(LOCAL_EPOCHS)
    if epochs is None or (isinstance(epochs, int) and epochs >= 1):
        return epochs
    raise ValueError(f"message refused: {LOCAL_EPOCHS} is {epochs!r}")


def _merges(config: ConfigRecord) -> tuple[int, int]:
    known, merges = integers_of(config, messages.MERGES) or (0, 0)
    return known, merges


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
        delta: Tensors after training minus before, without those that rested.
        report: The strategy's report: tensors of the same names in the same order as the delta, or
            an empty state.
        samples: The number of images that the client trained on.
        loss: The mean training loss.
        steps: The number of optimiser steps.
        rank: The client's own rank; None if it has the run's.
        clipped: True if the delta was clipped to a norm; None if the server did not ask for that.
    """
    metrics = MetricRecord({messages.SAMPLES: samples, messages.LOSS: loss, messages.STEPS: steps})
    if clipped is not None:
        metrics[messages.NORM_BIT] = int(clipped)
    records: dict[str, Record] = {
        messages.ARRAYS: messages.to_packed(cut(delta, rank)),
        messages.METRICS: metrics,
    }
    if report:
        records[messages.REPORT] = messages.to_packed(cut(report, rank))
    return RecordDict(records)


def read_update(
    content: RecordDict,
    layout: Layout,
    asked: Instruction,
    rank: int | None,
    *,
    population: int,
    expected: Counts,
) -> Update:
    """Reads at the server what `write_update` wrote.

    Args:
        content: The records of the reply.
        layout: The layout of all exchanged tensors.
        asked: The instruction that the client was sent.
        rank: The client's own rank; None if it has the run's.
        population: The number of clients in the whole run.
        expected: The numbers of images and steps that the update must state.

    Raises:
        ValueError: If the reply is not a usable update.
    """
    layouts = update_layouts(asked.plan.frozen, layout, rank)
    delta = messages.from_packed(content, layouts[messages.ARRAYS])
    report: State = {}
    if messages.REPORT in content.array_records:
        report = messages.from_packed(content, layouts[messages.REPORT], messages.REPORT)
    delta, report = (_filled(tensors, layout, rank) for tensors in (delta, report))
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
        rank=rank,
        report=report,
        population=population,
    )


def refuse_absurd(*states: State) -> None:
    """Refuses tensors that would ruin a sum. Both sides check, as servers do not trust clients.

    Raises:
        ValueError: If a tensor holds NaN, infinity, or a number larger than training produces.
    """
    if all(is_within(state, LARGEST) for state in states):
        return
    number = f"a number beyond {LARGEST:g}" if all(map(is_finite, states)) else "NaN or infinity"
    raise ValueError(f"its update holds {number}; a smaller learning rate may help")


def _norm_bit(metrics: MetricRecord) -> State:
    """Reads whether a client clipped its update; wrappers of Flower need this."""
    bit = messages.scalar(metrics, messages.NORM_BIT)
    if bit not in (0, 1):
        raise ValueError(f"it reports a norm bit of {bit}")
    return {messages.NORM_BIT: torch.tensor(bit)}


def _config_of(plan: ClientPlan) -> dict[str, ConfigValue]:
    """Returns the entries of a plan that clients need, as scalars of the instruction."""
    config: dict[str, ConfigValue] = {}
    if plan.frozen:
        config[messages.FROZEN] = list(plan.frozen)
    if plan.restarted:
        config[messages.RESTARTED] = list(plan.restarted)
    if plan.proximal_mu:
        config[PROXIMAL_MU] = plan.proximal_mu
    return config


def _filled(tensors: State, layout: Layout, rank: int | None) -> State:
    """Fills tensors that were cut to a rank with zeros, up to the full shape."""
    return tensors if rank is None else pad(tensors, layout.empty())
