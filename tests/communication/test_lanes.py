"""How groups travel: which codec, how often; and what people write wrongly."""

from __future__ import annotations

import pytest

from fl_vitlora.communication.groups import GROUPS
from fl_vitlora.communication.lanes import EXACT, parse_lane, read_lanes
from fl_vitlora.errors import UserError

A, B, HEAD = "blocks.0.attn.qkv.adapters.q.lora_A", "blocks.1.mlp.fc1.lora_B", "head.weight"


def test_a_group_without_a_codec_of_its_own_takes_the_common_one():
    lanes = read_lanes({"lora_A": "float16", "head": None}, "bfloat16")
    assert str(lanes.of(A).codec) == "float16"
    assert str(lanes.of(B).codec) == str(lanes.of(HEAD).codec) == "bfloat16"
    assert set(lanes.by_group) == set(GROUPS)


def test_exact_lanes_withhold_nothing():
    assert EXACT.exact
    assert not read_lanes({"head": "float16"}, "float32").exact
    assert not read_lanes({"head": "every(2)+float32"}, "float32").exact


def test_a_group_travels_in_every_nth_round_and_in_the_last():
    lanes = read_lanes({"head": "every(3)+float32"}, "float32")
    sent = [r for r in range(1, 9) if HEAD in lanes.open([A, HEAD], r, rounds=8)]
    assert sent == [3, 6, 8]
    assert all(A in lanes.open([A, HEAD], r, rounds=8) for r in range(1, 9))


def test_spaces_are_no_matter():
    assert parse_lane(" every( 2 ) + int4 ") == parse_lane("every(2)+int4")


def test_an_interval_alone_is_of_exact_values():
    lane = parse_lane("every(4)")
    assert (lane.every, str(lane.codec)) == (4, "float32")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("int5", "did you mean 'int"),
        ("every(0)+int4", "expected an interval from 1, then the codec, for example every(5)+int4"),
        ("every(x)+int4", "expected an interval from 1, then the codec, for example every(5)+int4"),
        ("every(3)int4", "expected an interval from 1, then the codec, for example every(5)+int4"),
        ("int4+every(2)", "an interval from 1, then the codec"),
        ("every(" + 5000 * "9" + ")", "expected an interval from 1"),
        ("every(2)+", "unknown codec"),
        ("", "unknown codec"),
        ("every(2)+intt8", "did you mean 'int8'"),
    ],
)
def test_a_mistake_is_told_with_what_comes_nearest(spec: str, told: str):
    with pytest.raises(UserError) as caught:
        parse_lane(spec)
    assert told in str(caught.value)
