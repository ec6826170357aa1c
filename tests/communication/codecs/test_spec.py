"""A specification names a codec and nothing else; what is none says what would be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.codecs import CODECS, parse
from fl_vitlora.communication.codecs.absmax import Int4, Int8
from fl_vitlora.communication.codecs.floats import Float32
from fl_vitlora.communication.codecs.topk import TopK
from fl_vitlora.communication.codecs.truncated_svd import LowRank
from fl_vitlora.errors import UserError
from tests.communication.codecs.vectors import SPECS


def test_every_codec_is_listed_under_its_name():
    assert {name: kind.name for name, kind in CODECS.items()} == {name: name for name in CODECS}


@pytest.mark.parametrize("kind", CODECS.values())
def test_examples_in_error_messages_are_good_ones(kind):
    assert kind.name in str(parse(kind.example))


@pytest.mark.parametrize("spec", SPECS)
def test_specifications_in_their_shortest_form_stay(spec: str):
    assert str(parse(spec)) == spec
    assert hash(parse(spec)) == hash(parse(spec))


@pytest.mark.parametrize(
    ("spec", "shortest"),
    [
        ("int4(64)", "int4"),
        (" int4 ( block = 64 , rounding = stochastic ) ", "int4"),
        ("int8(rounding=nearest,block=32)", "int8(32,rounding=nearest)"),
        ("int8(64,nearest)", "int8(rounding=nearest)"),
        ("int2(64)", "int2(64)"),
        ("int4()", "int4"),
        ("topk(.1)+float32", "topk(0.1)"),
        ("topk(1)", "topk(1.0)"),
        ("topk(fraction=1e-3) + int4", "topk(0.001)+int4"),
        ("qsgd(block=64)", "qsgd(block=64)"),
        ("lowrank(4)+topk(0.5)+int8", "lowrank(4)+topk(0.5)+int8"),
    ],
)
def test_a_codec_as_text_leaves_defaults_out(spec: str, shortest: str):
    assert str(parse(spec)) == shortest
    assert parse(shortest) == parse(spec)


def test_steps_are_nested_from_the_first():
    codec = parse("lowrank(4)+topk(0.5)+int8")
    assert codec == LowRank(rank=4, inner=TopK(fraction=0.5, inner=Int8()))
    assert parse("topk(0.1)") == TopK(fraction=0.1, inner=Float32())


@given(fraction=st.floats(0, 1, exclude_min=True))
def test_every_fraction_comes_back_from_its_text(fraction: float):
    codec = TopK(fraction=fraction)
    assert parse(str(codec)) == codec


@pytest.mark.parametrize(
    ("spec", "expectation"),
    [
        ("", "unknown codec ''"),
        ("int5", "unknown codec 'int5'; did you mean 'int"),
        ("top_k(0.1)", "did you mean 'topk'"),
        ("INT4", "did you mean 'int4'"),
        ("int4(", "unknown codec 'int4('"),
        ("int4)(", "unknown codec"),
        ("int4+", "unknown codec ''"),
        ("int4(7)", "codec int4: block must be a whole number from 8 to 65536, got 7; for example"),
        ("int4(65537)", "from 8 to 65536"),
        ("int4(-8)", "got '-8'"),
        ("int4(1_000)", "got '1_000'"),
        ("int4(64.0)", "got '64.0'"),
        (
            "int4(blok=64)",  # codespell:ignore
            "takes block and rounding, each at most once, got 'blok=64'",  # codespell:ignore
        ),
        ("int4(64,block=64)", "each at most once"),
        ("int4(64,up)", "rounding must be stochastic or nearest, got 'up'"),
        ("int4(64,nearest,1)", "got 3 arguments"),
        ("float32(1)", "this codec takes no arguments, got 1"),
        (
            "topk",
            "argument fraction is needed: a number above 0 and at most 1; for example topk(0.05)",
        ),
        ("topk(0)", "above 0"),
        ("topk(1.1)", "at most 1"),
        ("topk(nan)", "got 'nan'"),
        ("topk(5%)", "got '5%'"),
        ("lowrank(0)", "from 1 to 4096"),
        ("qsgd(128)", "from 1 to 127"),
        ("int4+int8", "codec int4: this codec must be the last step, but 'int8' follows it"),
        ("int4+topk(0.1)", "must be the last step"),
        ("topk(0.1)+" * 4 + "int4", "at most 4 steps"),
        ("int4(" + " " * 300 + ")", "at most 4 steps and 200 characters"),
    ],
)
def test_what_is_no_specification_says_what_would_be(spec: str, expectation: str):
    with pytest.raises(UserError, match=f"^[^\n]*{re.escape(expectation)}[^\n]*$"):
        parse(spec)


@given(spec=st.text(max_size=30) | st.text("int48topk(0.1,)+= ", max_size=30))
def test_no_text_breaks_the_parser(spec: str):
    try:
        codec = parse(spec)
    except UserError:
        return
    assert parse(str(codec)) == codec


@pytest.mark.parametrize("given", [{"block": 4}, {"block": True}, {"rounding": "up"}])
def test_codecs_are_held_to_their_bounds_however_they_are_made(given):
    with pytest.raises(UserError, match="codec int4: "):
        Int4(**given)
