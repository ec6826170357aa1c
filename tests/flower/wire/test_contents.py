"""What a client reads of an instruction is what the server wrote, in every field."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.client_records import Memory
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import (
    LEARNING_RATE,
    LOCAL_EPOCHS,
    SERVER_ROUND,
    ConfigValue,
    Instruction,
)
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.contents import Writer, read_instruction
from fl_vitlora.flower.wire.layouts import instruction_layouts
from fl_vitlora.lowrank import MERGED_A, MERGED_B
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan

SHAPES: dict[str, tuple[int, ...]] = {
    "p.lora_A": (2, 3),
    "p.lora_B": (4, 2),
    "q.lora_A": (2, 4),
    "q.lora_B": (3, 2),
}
SHAPES |= {"head.weight": (3, 4)}
LAYOUT = Layout(tuple(SHAPES.items()))
PAIRS = {"p": (4, 3), "q": (3, 4)}  # outputs and inputs of the weight at each path


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def merged(seed: int, ranks: tuple[int, int]) -> State:
    shapes: dict[str, tuple[int, ...]] = {}
    for (path, (outputs, inputs)), rank in zip(PAIRS.items(), ranks, strict=True):
        if rank:
            shapes |= {path + MERGED_A: (rank, inputs), path + MERGED_B: (outputs, rank)}
    return drawn(seed, shapes)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    model = GlobalModel(tensors=drawn(draw(st.integers(0, 99)), SHAPES))
    ranks = st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(any)
    for number, each in enumerate(draw(st.lists(ranks, max_size=4))):
        model = model.followed_by(model.tensors, merged(number, each))
    config: dict[str, ConfigValue] = {
        SERVER_ROUND: draw(st.integers(1, 10**6)),
        LEARNING_RATE: draw(st.floats(1e-9, 1e3)),
    }
    if (epochs := draw(st.none() | st.integers(1, 99))) is not None:
        config[LOCAL_EPOCHS] = epochs
    if (norm := draw(st.none() | st.floats(1e-6, 1e6))) is not None:
        config[messages.CLIPPING_NORM] = norm
    frozen = draw(st.sampled_from([(), (".lora_A",), (".lora_B", "weight")]))
    plan = ClientPlan(frozen=frozen, proximal_mu=draw(st.sampled_from([0.0, 0.25])))
    broadcast = drawn(draw(st.integers(100, 199)), SHAPES) if draw(st.booleans()) else {}
    return Instruction(client=3, model=model, config=config, plan=plan, broadcast=broadcast)


@given(asked=instructions(), data=st.data())
def test_what_is_read_is_what_was_written(asked: Instruction, data: st.DataObject):
    known = data.draw(st.integers(0, asked.model.rounds), label="merges that the client has")
    cached = data.draw(st.frozensets(st.sampled_from(sorted(SHAPES))), label="cached")
    missed = data.draw(st.booleans(), label="missed")
    memory = Memory(
        round=4, tensors={n: asked.model.tensors[n] for n in cached}, merges=known, missed=missed
    )
    content = Writer(LAYOUT).write(asked, memory, cached, None)
    found = read_instruction(content, LAYOUT, None)

    sent = {name: t for name, t in asked.model.tensors.items() if name not in cached}
    assert same(found.tensors, sent)
    assert found.cached == cached
    assert found.since == (4 if cached else 0)
    assert same(found.broadcast, dict(asked.broadcast))
    assert found.round == asked.config[SERVER_ROUND]
    assert found.rate == asked.config[LEARNING_RATE]
    assert found.epochs == asked.config.get(LOCAL_EPOCHS)
    assert found.clipping_norm == asked.config.get(messages.CLIPPING_NORM)
    assert found.frozen == asked.plan.frozen
    assert found.proximal_mu == asked.plan.proximal_mu
    assert found.taken == (0 if missed else None)

    pairs = asked.model.merges_since(known)
    if pairs is None:
        assert found.merges == (0, asked.model.rounds)
        assert same(found.increments, asked.model.increments)
        assert not any(found.merged)
    else:
        assert found.merges == (known, asked.model.rounds)
        assert len(found.merged) == len(pairs)
        assert all(same(one, other) for one, other in zip(found.merged, pairs, strict=True))
        assert found.increments == {}


def test_messages_of_one_kind_have_one_set_of_layouts():
    """They are derived once, however many messages there are."""
    asked = Instruction(
        client=0,
        model=GlobalModel(tensors=drawn(0, SHAPES)),
        config={SERVER_ROUND: 1, LEARNING_RATE: 0.5},
    )
    one, other = (
        Writer(LAYOUT).write(asked, Memory(), frozenset({"head.weight"}), 1) for _ in range(2)
    )
    first = instruction_layouts(one.config_records[messages.CONFIG], LAYOUT, 1)
    again = instruction_layouts(other.config_records[messages.CONFIG], LAYOUT, 1)
    assert first is again
    assert first[messages.ARRAYS].shapes[0] == ("p.lora_A", (1, 3))
