"""What stands in the messages of a round: both ends of each, side by side.

An instruction brings the tensors that a client lacks (`holdings`), what the strategy sends beside
them, pairs to be merged into frozen weights, and the plan of the round; an update brings the
difference that training made, and what the strategy reports. A client of a smaller rank is sent,
and sends, no more of each low-rank matrix than its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.client_cache import Memory
from fl_vitlora.federation.global_model import GlobalModel, join, part
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import (
    frozen_of,
    instruction_layouts,
    integers_of,
    merged_ranks,
    number_of,
    pairs_of,
    round_of,
    spared_of,
    taken_of,
    update_layouts,
)
from fl_vitlora.flower.wire.reported_counts import Counts, check_images, read_loss, read_steps
from fl_vitlora.lowrank import MERGED_A, MERGED_B, cut, pad
from fl_vitlora.state import State, is_finite, is_within
from fl_vitlora.strategy import ClientPlan, Update

# No trained weight moves as far as that, nor does a gradient grow so large; and where one client
# says so much, float32 still has steps of a sixteenth for what the others say.
LARGEST = 1e6

Record = ArrayRecord | MetricRecord | ConfigRecord
ConfigValue = messages.ConfigValue


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What one client is asked in one round.

    Attributes:
        client: Who.
        model: What to start from.
        config: Scalars and lists of the round.
        plan: What of the model rests, and what clients pay for.
        broadcast: What the strategy sends beside the model.
    """

    client: int
    model: GlobalModel
    config: Mapping[str, ConfigValue]
    plan: ClientPlan = field(default_factory=ClientPlan)
    broadcast: State = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a client finds in an instruction.

    Attributes:
        tensors: Those of the model that were sent, in full shape.
        cached: Names of those that were not, as the client has them.
        since: The round in which it remembered them; 0 where they have their initial values.
        merged: Pairs to be added to frozen weights, one round's after the other's.
        increments: Instead of them, all that is to be added to the pre-trained weights, by path.
        merges: Of how many rounds it is taken to have the pairs, and of how many it has them with
            these; where the first is 0, it starts afresh.
        broadcast: What the strategy sends beside the model.
        round: From 1.
        rate: The learning rate.
        epochs: Passes over the shard, if a strategy says how many.
        frozen: Endings of what rests.
        proximal_mu: Weight of the penalty.
        clipping_norm: The norm that updates must not exceed, where a wrapper of Flower says one.
        taken: The round of the last update that the server took of this client, if it has reason to
            say so: what the client has remembered since, the server knows nothing of.
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
    """Writes the instructions of a round; what several clients are sent is packed once.

    Args:
        layout: Of all exchanged tensors.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._packed: dict[object, ArrayRecord] = {}

    def write(
        self, asked: Instruction, memory: Memory, cached: frozenset[str], rank: int | None
    ) -> RecordDict:
        """Writes what one client is sent.

        Args:
            asked: The instruction.
            memory: What the client remembers.
            cached: The tensors that it need not be sent.
            rank: Its own, if it has one.
        """
        model, known = asked.model, memory.merges
        config: dict[str, ConfigValue] = {**asked.config, **_config_of(asked.plan)}
        if cached:
            config[messages.SPARED] = self._layout.mark(cached)
            config[messages.SPARED_SINCE] = memory.round if memory.tensors else 0
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
        content: Of the message.
        layout: Of all exchanged tensors.
        rank: The client's own, if it has one.

    Raises:
        ValueError: When the message holds other tensors than expected.
    """
    config = content.config_records[messages.CONFIG]
    layouts = instruction_layouts(config, layout, rank)

    def unpack(record: str) -> State:
        given = record in content.array_records or record == messages.ARRAYS
        return messages.from_packed(content, layouts[record], record) if given else {}

    return Received(
        tensors=_filled(unpack(messages.ARRAYS), layout, rank),
        cached=spared_of(config, layout),
        since=int(cast(int, config.get(messages.SPARED_SINCE, 0))),
        merged=part(unpack(messages.MERGED), merged_ranks(config, layout)),
        increments=unpack(messages.INCREMENTS),
        merges=_merges(config),
        broadcast=_filled(unpack(messages.BROADCAST), layout, rank),
        round=round_of(config),
        rate=number_of(config, messages.LEARNING_RATE) or 0.0,
        epochs=_epochs(config),
        frozen=frozen_of(config),
        proximal_mu=number_of(config, messages.PROXIMAL_MU) or 0.0,
        clipping_norm=number_of(config, messages.CLIPPING_NORM),
        taken=taken_of(config),
    )


def _epochs(config: ConfigRecord) -> int | None:
    """Reads how many passes over the shard a strategy asks for.

    Raises:
        ValueError: When it is no whole number from 1.
    """
    epochs = config.get(messages.LOCAL_EPOCHS)
    if epochs is None or (isinstance(epochs, int) and epochs >= 1):
        return epochs
    raise ValueError(f"message refused: {messages.LOCAL_EPOCHS} is {epochs!r}")


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
        report: What the strategy says beside it; of the same names in the same order, or empty.
        samples: Images it trained on.
        loss: Its mean training loss.
        steps: Of the optimiser.
        rank: The client's own, if it has one.
        clipped: Whether the delta was cut to a norm, where the server asked that.
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
        content: Of the reply.
        layout: Of all exchanged tensors.
        asked: What the client was asked.
        rank: Its own, if it has one.
        population: How many clients there are in all.
        expected: What it must say of its images and steps.

    Raises:
        ValueError: When it is not a usable update.
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
    """Refuses what would ruin a sum; both ends look, for a server need not trust its clients.

    Raises:
        ValueError: When there is a NaN, an infinity, or a number beyond what training comes to.
    """
    if all(is_within(state, LARGEST) for state in states):
        return
    number = f"a number beyond {LARGEST:g}" if all(map(is_finite, states)) else "NaN or infinity"
    raise ValueError(f"its update holds {number}; a smaller learning rate may help")


def _norm_bit(metrics: MetricRecord) -> State:
    """Reads whether a client clipped its update, which wrappers of Flower ask."""
    bit = messages.scalar(metrics, messages.NORM_BIT)
    if bit not in (0, 1):
        raise ValueError(f"it reports a norm bit of {bit}")
    return {messages.NORM_BIT: torch.tensor(bit)}


def _config_of(plan: ClientPlan) -> dict[str, ConfigValue]:
    """Writes what of a plan clients must know."""
    config: dict[str, ConfigValue] = {}
    if plan.frozen:
        config[messages.FROZEN] = list(plan.frozen)
    if plan.proximal_mu:
        config[messages.PROXIMAL_MU] = plan.proximal_mu
    return config


def _filled(tensors: State, layout: Layout, rank: int | None) -> State:
    """Fills tensors that were cut to a rank up with zeros."""
    return tensors if rank is None else pad(tensors, layout.empty())
