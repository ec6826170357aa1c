"""What a client reads is what the server wrote, in every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

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
from fl_vitlora.flower.server.composing import compose
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.round_message import RoundMessage, Writer, read
from fl_vitlora.lowrank import MERGED_A, MERGED_B, cut, pad
from fl_vitlora.privacy.agreement import Assignment
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan

# The digest of a message covers the tensors themselves, and these fields say how they travel ...
TRAVEL = {"tensors", "cached", "since", "merged", "increments", "broadcast", "others"}
EVALUATION = {"views", "most"}  # ... or concern only evaluation, ...
OF_ONE_CLIENT = {"taken"}  # ... or differ between clients of an honest server.
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
    restarted = draw(st.sampled_from([(), (".lora_A", ".lora_B")]))
    plan = ClientPlan(
        frozen=frozen, restarted=restarted, proximal_mu=draw(st.sampled_from([0.0, 0.25]))
    )
    broadcast = drawn(draw(st.integers(100, 199)), SHAPES) if draw(st.booleans()) else {}
    return Instruction(client=3, model=model, config=config, plan=plan, broadcast=broadcast)


@st.composite
def round_messages(draw: st.DrawFn, rank: int | None = None) -> RoundMessage:
    """A message with any values in all of its fields, of which a client of a rank has a part."""
    cached = draw(st.frozensets(st.sampled_from(sorted(SHAPES))))
    model, broadcast = (
        pad(cut(drawn(draw(st.integers(0, 99)), SHAPES), rank), LAYOUT.empty()) for _ in range(2)
    )
    ranks = st.tuples(st.integers(0, 2), st.integers(0, 2))
    merged_states = [merged(n, each) for n, each in enumerate(draw(st.lists(ranks, max_size=4)))]
    whole = not merged_states and draw(st.booleans())
    names = draw(st.sets(st.sampled_from(sorted(PAIRS)), min_size=1)) if whole else ()
    merges = draw(st.integers(1, 9)) if merged_states or whole else 0
    number = st.floats(1e-9, 1e9)
    return RoundMessage(
        tensors={name: tensor for name, tensor in model.items() if name not in cached},
        cached=cached,
        since=draw(st.integers(0, 10**6)) if cached else 0,
        merged=tuple(merged_states),
        increments=drawn(7, {path: PAIRS[path] for path in PAIRS if path in names}),
        merges=(draw(st.integers(0, merges)), merges),
        broadcast=draw(st.sampled_from([{}, broadcast])),
        round=draw(st.integers(1, 10**6)),
        rate=draw(st.just(0.0) | number),
        epochs=draw(st.none() | st.integers(1, 99)),
        frozen=draw(st.sampled_from([(), (".lora_A",), (".lora_B", "weight")])),
        restarted=draw(st.sampled_from([(), (".lora_A", ".lora_B")])),
        proximal_mu=draw(st.just(0.0) | number),
        clipping_norm=draw(st.none() | number),
        taken=draw(st.none() | st.integers(0, 10**6)),
        views=draw(st.none() | st.lists(st.text(max_size=9), max_size=3).map(tuple)),
        others=draw(
            st.dictionaries(
                st.text(st.sampled_from("xyz"), max_size=3),
                st.integers(-9, 9) | st.text(max_size=5) | st.lists(st.booleans(), max_size=3),
                max_size=3,
            )
        ),
    )


@given(data=st.data(), rank=st.none() | st.integers(1, 2))
def test_what_is_read_is_what_was_written(data: st.DataObject, rank: int | None):
    written = data.draw(round_messages(rank))
    found = read(Writer(LAYOUT).write(written, rank), LAYOUT, rank)
    for name, value in vars(written).items():
        if name in ("tensors", "broadcast", "increments"):
            assert same(getattr(found, name), value), name
        elif name == "merged":
            assert len(found.merged) == len(value)
            assert all(same(one, other) for one, other in zip(found.merged, value, strict=True))
        else:
            assert getattr(found, name) == value, name


def test_the_tensors_of_several_clients_become_one_record():
    writer, model = Writer(LAYOUT), drawn(0, SHAPES)
    one, other, short = (
        writer.write(RoundMessage(round=1, tensors=dict(model), taken=taken), rank)
        for taken, rank in ((None, None), (3, None), (None, 1))
    )
    assert one[messages.ARRAYS] is other[messages.ARRAYS]
    assert short[messages.ARRAYS] is not one[messages.ARRAYS]


@given(asked=instructions(), data=st.data())
def test_a_message_says_what_its_client_lacks_and_is_to_do(asked: Instruction, data: st.DataObject):
    known = data.draw(st.integers(0, asked.model.rounds), label="merges that the client has")
    cached = data.draw(st.frozensets(st.sampled_from(sorted(SHAPES))), label="cached")
    missed = data.draw(st.booleans(), label="missed")
    memory = Memory(
        round=4, tensors={n: asked.model.tensors[n] for n in cached}, merges=known, missed=missed
    )
    found = compose(asked, memory, cached)

    sent = {name: t for name, t in asked.model.tensors.items() if name not in cached}
    assert same(found.tensors, sent)
    assert found.cached == cached
    assert found.since == (4 if cached else 0)
    awake = {n: t for n, t in asked.broadcast.items() if not n.endswith(asked.plan.frozen)}
    assert same(found.broadcast, awake)
    assert found.round == asked.config[SERVER_ROUND]
    assert found.rate == asked.config[LEARNING_RATE]
    assert found.epochs == asked.config.get(LOCAL_EPOCHS)
    assert found.clipping_norm == asked.config.get(messages.CLIPPING_NORM)
    assert found.frozen == asked.plan.frozen
    assert found.restarted == asked.plan.restarted
    assert found.proximal_mu == asked.plan.proximal_mu
    assert found.taken == (0 if missed else None)

    pairs = asked.model.merges_since(known)
    if pairs is None:
        assert found.merges == (0, asked.model.rounds)
        assert same(found.increments, asked.model.increments)
        assert found.merged == ()
    else:
        assert found.merges == (known, asked.model.rounds)
        assert len(found.merged) == len(pairs)
        assert all(same(one, other) for one, other in zip(found.merged, pairs, strict=True))
        assert found.increments == {}


def test_every_field_that_decides_how_a_client_trains_belongs_to_the_assignment():
    """Guard and masks cover assignments; a new field outside of them would be a hole in both."""
    known = {each.name for each in fields(Assignment)}
    others = TRAVEL | EVALUATION | OF_ONE_CLIENT
    assert {each.name for each in fields(RoundMessage)} == known | others
    assert {each.name for each in fields(ClientPlan)} <= known
