"""A stream: whoever follows it, and whenever, holds the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_vitlora.communication.compression import code
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Part
from fl_vitlora.communication.stream import WHOLE, Stream, follow
from fl_vitlora.state import State, add, l2_norm, scale, subtract
from tests.communication.test_compression import SPECS, draw, equal, lanes, state

START = state("start")
LAYOUT = Layout.of(START)
ALL = frozenset(START)
LOSSY = [spec for spec in SPECS if spec != "float32"]


def walk(rounds: int) -> list[State]:
    """Where a model goes: every step a little further, and smaller than the one before."""
    model, targets = START, []
    for number in range(rounds):
        model = add(model, scale(state("step", number), 0.3 / (number + 1)))
        targets.append(model)
    return targets


def streams(spec: str, targets: list[State]) -> list[Stream]:
    """The stream after each step."""
    stream, all_of_them = Stream.of(START), []
    for number, target in enumerate(targets):
        stream = stream.advance(target, lanes(spec), ALL, draw(number))
        all_of_them.append(stream)
    return all_of_them


def received(held: State, base: int, parts: tuple[Part, ...]) -> State:
    return follow(START if base == WHOLE else held, base, parts, LAYOUT)


@pytest.mark.parametrize("spec", LOSSY)
def test_who_follows_every_step_holds_what_the_server_holds(spec: str):
    held, version = START, 0
    for stream in streams(spec, walk(5)):
        held = received(held, *stream.since(version))
        version = stream.version
        assert equal(held, stream.held)


@pytest.mark.parametrize("spec", LOSSY)
@given(attendance=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=10, deadline=None)
def test_who_missed_any_steps_holds_the_same_after_the_next(spec: str, attendance: list[bool]):
    held, version = START, 0
    for stream, comes in zip(streams(spec, walk(12)), attendance, strict=True):
        if comes:
            held = received(held, *stream.since(version))
            version = stream.version
            assert equal(held, stream.held)


@pytest.mark.parametrize("spec", LOSSY)
def test_it_comes_near_a_model_that_comes_to_rest(spec: str):
    targets = walk(12)
    stream = streams(spec, targets)[-1]
    for number in range(60):
        nudged = add(targets[-1], scale(state("nudge", number), 1e-6))
        stream = stream.advance(nudged, lanes(spec), ALL, draw(100 + number))
    away = l2_norm(subtract(targets[-1], START))
    assert l2_norm(subtract(stream.held, targets[-1])) < 0.1 * away


def test_what_did_not_move_is_not_sent_again():
    stream = Stream.of(START).advance(walk(1)[0], lanes("int4"), ALL, draw())
    assert stream.advance(walk(1)[0], lanes("int4"), ALL, draw(1)) is stream
    head = {**walk(1)[0], "head.bias": torch.ones(10)}
    (part,) = stream.advance(head, lanes("int4"), ALL, draw(1)).steps[1:]
    assert [section.group for section in part.sections] == ["head"]


def test_a_model_that_stays_as_it_was_costs_nothing():
    stream = Stream.of(START).advance(START, lanes("int4"), ALL, draw())
    assert stream.since(0) == (0, ())


def test_what_rests_on_the_wire_does_not_move():
    without_head = frozenset(name for name in ALL if not name.startswith("head"))
    stream = Stream.of(START).advance(walk(1)[0], lanes("int4"), without_head, draw())
    assert torch.equal(stream.held["head.weight"], START["head.weight"])
    assert not torch.equal(stream.held["norm.weight"], START["norm.weight"])


def test_nobody_is_ever_sent_more_than_the_whole():
    targets = walk(60)
    whole = 4 * LAYOUT.scalars
    for spec in ("float16", "int8", "int4"):
        stream = streams(spec, targets)[-1]
        for version in range(stream.version + 1):
            base, parts = stream.since(version)
            assert sum(part.size for part in parts) <= whole
            assert (base == WHOLE) == (len(parts) == 1 and parts[0].sections[0].codec == "float32")
        assert stream.since(0)[0] == WHOLE
        assert stream.since(stream.version - 1)[0] == stream.version - 1
        assert sum(step.size for step in stream.steps) <= whole


def test_the_whole_lacks_what_never_moved():
    targets = [{n: t for n, t in one.items() if not n.startswith("head")} for one in walk(60)]
    stream = streams("int8", targets)[-1]
    base, parts = stream.since(0)
    assert base == WHOLE
    assert [section.group for part in parts for section in part.sections].count("head") == 0
    assert equal(received(START, base, parts), stream.held)
    full = (code(stream.held, LAYOUT, EXACT, draw()),)
    assert equal(follow(START, -1, full, LAYOUT), stream.held)  # as older programs send it


def test_the_whole_is_exact():
    stream = streams("int8", walk(60))[-1]
    base, parts = stream.since(0)
    assert equal(received(START, base, parts), stream.held)
