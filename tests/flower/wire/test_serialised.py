"""The bytes of a message are those of the objects that Flower itself makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.flower.wire.serialised import object_bytes

names = st.text(max_size=5)
integers = st.integers(-(2**63), 2**64 - 1)
numbers = st.floats() | integers
values: st.SearchStrategy[Any] = numbers | st.lists(st.floats(), min_size=1, max_size=3)
scalars = numbers | st.booleans() | st.text(max_size=9) | st.binary(max_size=200)
settings: st.SearchStrategy[Any] = scalars | st.lists(st.text(max_size=3), min_size=1, max_size=3)
arrays = st.builds(
    lambda data, kind: Array("uint8", (len(data),), kind, data),
    st.binary(max_size=40) | st.just(b"the same"),
    st.sampled_from(["packed", "numpy.ndarray"]),
)
records = (
    st.dictionaries(names, arrays, max_size=4).map(ArrayRecord)
    | st.dictionaries(names, settings, max_size=3).map(ConfigRecord)
    | st.dictionaries(names, values, max_size=3).map(MetricRecord)
)
contents = st.dictionaries(names, records, max_size=4).map(RecordDict)


def flower_bytes(one: Message) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(one).values())


def message(content: RecordDict, node: int = 2, **metadata: Any) -> Message:
    one = Message(content, dst_node_id=node, message_type="train", **metadata)
    one.metadata.__dict__["_message_id"] = "set by whoever sends it"
    return one


@given(contents, st.integers(0, 2**63), st.sampled_from(["", "round 3"]))
def test_any_message_and_any_reply_are_counted_as_flower_serialises_them(
    content: RecordDict, node: int, group: str
):
    question = message(content, node, group_id=group, ttl=1e5)
    answer = Message(content, reply_to=question)
    for one in (question, answer):
        assert object_bytes(one) == flower_bytes(one)


@given(st.integers(0, 300), st.text(max_size=50))
def test_an_error_is_counted_as_flower_serialises_it(code: int, reason: str):
    reply = Message(Error(code, reason), reply_to=message(RecordDict()))
    assert object_bytes(reply) == flower_bytes(reply)


def test_what_is_equal_travels_once():
    config, numbers = ConfigRecord({"a": b"x" * 1000}), MetricRecord({"a": 1})
    once = message(RecordDict({"p": config}))
    twice = message(RecordDict({"p": config, "q": ConfigRecord(dict(config))}))
    assert object_bytes(twice) == flower_bytes(twice) < object_bytes(once) + 100
    other = message(RecordDict({"p": numbers, "q": ConfigRecord({"a": 1})}))
    assert object_bytes(other) == flower_bytes(other)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 3])
def test_large_arrays_are_cut_and_equal_chunks_travel_once(chunks: int, beyond: int):
    size = chunks * FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + beyond
    noise = np.random.default_rng(0).bytes(size)
    for data in (bytes(size), noise):
        array = Array("uint8", (size,), "packed", data)
        one = message(RecordDict({"p": ArrayRecord({"x": array, "y": array})}))
        assert object_bytes(one) == flower_bytes(one)


def test_arrays_of_the_same_numbers_in_other_records_are_told_apart():
    numbers = [Array(np.array(pair, np.float32)) for pair in ([1, 2], [1, 2], [2, 1])]
    for first in numbers:
        for second in numbers:
            one = message(
                RecordDict({"a": ArrayRecord({"x": first}), "b": ArrayRecord({"x": second})})
            )
            assert object_bytes(one) == flower_bytes(one)
