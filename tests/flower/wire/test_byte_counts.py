"""A message is measured by its serialised form."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.compression import code
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire.byte_counts import model_bytes, overhead_of, reference_sizes
from fl_vitlora.flower.wire.folding import LARGE, fold, unfold
from fl_vitlora.flower.wire.wiring import chance
from fl_vitlora.state import State
from fl_vitlora.testing import made_up_model

MODEL = made_up_model()


def message(state: State, **plain: ConfigRecord | MetricRecord | ArrayRecord) -> Message:
    part = code(state, Layout.of(state), EXACT, chance(0))
    folded = fold(RecordDict(dict(plain)), {"arrays": (part,)}, {})
    return Message(folded, dst_node_id=2, message_type="train")


def measured(one: Message) -> tuple[dict[str, int], int]:
    groups = unfold(one.content).groups
    return groups, overhead_of(one, groups)


def flower_bytes(one: Message) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(one).values())


@given(scalars=st.integers(0, 300))
def test_a_message_is_all_of_its_parts_deflated(scalars: int):
    one = message({"head.weight": torch.zeros(scalars)}, config=ConfigRecord({"a": 1}))
    groups, overhead = measured(one)
    assert groups == {"head": 4 * scalars}
    assert 4 * scalars + overhead == flower_bytes(one)
    assert 0 < overhead < 500


@pytest.mark.parametrize("scalars", [10, LARGE])
def test_the_format_itself_adds_less_than_200_bytes(scalars: int):
    """The rest of the overhead is Flower's: headers, digests of nested objects, ids of nodes."""
    told = ConfigRecord({"server-round": 7, "learning-rate": 0.0123456789})
    full = message({"head.weight": torch.randn(scalars)}, config=told)
    bare = Message(RecordDict({"f": ConfigRecord({"f": b""})}), dst_node_id=2, message_type="train")
    if scalars == 10:
        assert measured(full)[1] - flower_bytes(bare) < 200
    assert measured(full)[1] < 1000


def test_more_settings_are_more_overhead_and_no_payload():
    short = measured(message({}, config=ConfigRecord({"a": 1})))
    long = measured(message({}, config=ConfigRecord({"a": 1, "b": bytes(range(100))})))
    assert short[0] == long[0] == {}
    assert long[1] - short[1] >= 100


def test_an_error_is_all_overhead():
    reply = Message(Error(1, "x" * 500), reply_to=message({}))
    assert overhead_of(reply, {}) == flower_bytes(reply) > 500


def test_a_message_that_is_not_folded_is_all_overhead():
    foreign = Message(RecordDict({"a": ConfigRecord()}), dst_node_id=2, message_type="train")
    assert overhead_of(foreign, {}) == flower_bytes(foreign)


def test_a_full_model_costs_its_bytes_and_little_more():
    bare = 4 * sum(tensor.numel() for tensor in MODEL.values())
    for total in model_bytes(MODEL):
        assert bare < total < bare + 600


def test_the_reference_has_the_sizes_of_real_messages():
    """The question and its answer carry no tensors; names of tensors do not travel."""
    sizes = reference_sizes(MODEL, ["cat", "dog"])
    assert (sizes.downlink, sizes.uplink) == model_bytes(MODEL)
    renamed = {f"other.{number}": tensor for number, tensor in enumerate(MODEL.values())}
    assert abs(reference_sizes(renamed, ["cat", "dog"]).downlink - sizes.downlink) < 100
    assert 200 < sizes.question < sizes.greeting < 600
