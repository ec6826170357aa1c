"""Coded tensors: what is sent and what is withheld are the whole, with every codec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.compression import code, compress, decode
from fl_vitlora.communication.lanes import EXACT, Lanes, read_lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Part
from fl_vitlora.rng import generator
from fl_vitlora.state import State, add, l2_norm, scale, subtract

SHAPES = {
    "patch_embed.proj.weight": (16, 3, 4, 4),
    "patch_embed.proj.bias": (16,),
    "blocks.0.attn.qkv.adapters.q.lora_A": (4, 16),
    "blocks.0.attn.qkv.adapters.q.lora_B": (16, 4),
    "blocks.1.attn.qkv.adapters.q.lora_A": (4, 16),
    "blocks.1.attn.qkv.adapters.q.lora_B": (16, 4),
    "head.weight": (10, 16),
    "head.bias": (10,),
    "norm.weight": (16,),
}
SPECS = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int4",
    "int4(block=32,rounding=nearest)",
    "int2",
    "ecsq",
    "nf4",
    "qsgd",
    "sign",
    "topk(0.1)",
    "topk(0.1)+int4",
    "topk(0.05)+sign",
    "lowrank(2)+int8",
    "lowrank(2)+topk(0.5)+int4",
]


def state(*path: str | int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> State:
    chance = generator(0, "state", *path)
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


LAYOUT = Layout.of(state())


def lanes(spec: str) -> Lanes:
    return read_lanes({}, spec)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def equal(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_exact_lanes_change_nothing():
    assert equal(decode(code(state(), LAYOUT, EXACT, draw()), LAYOUT), state())


@pytest.mark.parametrize("spec", SPECS)
def test_coded_tensors_keep_names_shapes_and_order(spec: str):
    decoded = decode(code(state(), LAYOUT, lanes(spec), draw()), LAYOUT)
    assert Layout.of(decoded) == LAYOUT
    assert all(tensor.dtype == torch.float32 for tensor in decoded.values())


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_draws_give_the_same_bytes(spec: str):
    assert code(state(), LAYOUT, lanes(spec), draw()) == code(state(), LAYOUT, lanes(spec), draw())


@given(st.sets(st.sampled_from(list(SHAPES))))
def test_some_of_the_tensors_may_travel(names: set[str]):
    some = {name: tensor for name, tensor in state().items() if name in names}
    assert equal(decode(code(some, LAYOUT, EXACT, draw()), LAYOUT), some)


def test_a_part_says_which_codec_each_group_has():
    mixed = read_lanes({"lora_A": "int4", "head": "float16"}, "float32")
    part = code(state(), LAYOUT, mixed, draw())
    told = {section.group: section.codec for section in part.sections}
    assert told == {
        "patch_embed": "float32",
        "lora_A": "int4",
        "lora_B": "float32",
        "head": "float16",
        "other": "float32",
    }
    assert part.size == sum(len(section.body) for section in part.sections)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_sent_and_what_is_withheld_are_the_whole(spec: str):
    everything = frozenset(SHAPES)
    owed = scale(state("owed"), 0.1)
    part, withheld = compress(
        state(), owed, LAYOUT, lanes=lanes(spec), travelling=everything, draw=draw()
    )
    sent = decode(part, LAYOUT)
    if spec == "float32":
        assert withheld == {}
        return
    rebuilt, target = add(sent, withheld), add(state(), owed)
    assert l2_norm(subtract(rebuilt, target)) < 1e-5 * l2_norm(target)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "float32"])
def test_over_many_rounds_everything_arrives(spec: str):
    """The same change every round: what was sent falls behind by a bounded amount, not more."""
    change, total = scale(state(), 1e-2), scale(state(), 0.0)
    owed: State = {}
    behind = []
    for number in range(1, 161):
        part, owed = compress(
            change,
            owed,
            LAYOUT,
            lanes=lanes(spec),
            travelling=frozenset(SHAPES),
            draw=draw(number),
        )
        total = add(total, decode(part, LAYOUT))
        if number in (80, 160):
            behind.append(l2_norm(subtract(total, scale(change, number))))
    assert behind[1] < 1.5 * behind[0] + 1e-4
    assert behind[1] < 0.35 * 160 * l2_norm(change)


def test_what_rests_on_the_wire_is_withheld_whole():
    travelling = frozenset(SHAPES) - {"head.weight", "head.bias"}
    every = read_lanes({"head": "every(2)+float32"}, "float32")
    part, withheld = compress(state(), {}, LAYOUT, lanes=every, travelling=travelling, draw=draw())
    assert set(decode(part, LAYOUT)) == travelling
    assert equal(withheld, {name: state()[name] for name in ("head.weight", "head.bias")})
    part, withheld = compress(
        state("next"), withheld, LAYOUT, lanes=every, travelling=frozenset(SHAPES), draw=draw()
    )
    both = state()["head.weight"] + state("next")["head.weight"]
    assert torch.equal(decode(part, LAYOUT)["head.weight"], both)
    assert not any(tensor.any() for tensor in withheld.values())


def test_what_is_withheld_of_tensors_that_rest_stays_withheld():
    """For example, A rests in the rounds in which only B is trained."""
    only_b = {name: tensor for name, tensor in state().items() if name.endswith("lora_B")}
    owed = {name: tensor for name, tensor in state("a").items() if name.endswith("lora_A")}
    _, withheld = compress(
        only_b,
        owed,
        Layout.of(only_b),
        lanes=lanes("int4"),
        travelling=frozenset(only_b),
        draw=draw(),
    )
    assert set(withheld) == set(only_b) | set(owed)
    assert all(withheld[name] is owed[name] for name in owed)


def test_a_part_of_another_model_is_refused():
    other = Layout.of({**state(), "head.bias": torch.zeros(11)})
    with pytest.raises(ValueError, match="do client and server build the same model"):
        decode(code(state(), LAYOUT, EXACT, draw()), other)


def test_tensors_that_the_other_side_does_not_expect_are_not_sent():
    with pytest.raises(ValueError, match="must have names and shapes of the layout"):
        code({**state(), "extra": torch.zeros(1)}, LAYOUT, EXACT, draw())
    with pytest.raises(ValueError, match="must have names and shapes of the layout"):
        code(dict(reversed(state().items())), LAYOUT, EXACT, draw())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spec", SPECS)
def test_what_is_no_number_is_not_sent(spec: str, value: float):
    broken = state()
    broken["head.bias"][3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        code(broken, LAYOUT, lanes(spec), draw())


def damaged() -> list[Part]:
    good = code(state(), LAYOUT, lanes("int4"), draw())
    first = good.sections[0]
    return [
        replace(good, sections=good.sections[1:]),
        replace(good, sections=good.sections[::-1]),
        replace(good, sections=(replace(first, codec="int8"), *good.sections[1:])),
        replace(good, sections=(replace(first, codec="int9"), *good.sections[1:])),
        replace(good, sections=(replace(first, codec=""), *good.sections[1:])),
        replace(good, sections=(replace(first, body=first.body[:-1]), *good.sections[1:])),
        replace(good, sections=(replace(first, body=first.body + b"x"), *good.sections[1:])),
        replace(good, marks=b"\x01"),
        replace(good, digest=bytes(8)),
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_part_that_is_not_as_it_was_written_is_refused(number: int):
    with pytest.raises(ValueError, match="message refused"):
        decode(damaged()[number], LAYOUT)


@given(st.binary(max_size=8))
def test_marks_of_any_kind_crash_nothing(marks: bytes):
    good = code(state(), LAYOUT, EXACT, draw())
    try:
        found = decode(replace(good, marks=marks), LAYOUT)
    except ValueError:
        return
    assert set(found) <= set(SHAPES)
