"""Folded messages: what anybody may send is read or refused, and counted as what it is."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication import parcel
from fl_vitlora.communication.parcel import Parcel, Part, Section
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import KEY, LARGE, fold, packed_record, unfold

values = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=4)
)
trees = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["c", "m", "v", "arrays", "config"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def sent(plain: Any, *parts: tuple[str, Part]) -> RecordDict:
    buffer = parcel.write(Parcel(plain=plain, parts=parts))
    return RecordDict({KEY: ConfigRecord({KEY: buffer})})


@given(st.dictionaries(st.sampled_from(["c", "m", "v", "x"]), trees, max_size=4))
def test_any_plain_values_are_read_or_refused(plain: dict[str, Any]):
    try:
        content, _, versions = unfold(sent(plain))
    except ValueError:
        return
    assert isinstance(content, RecordDict)
    assert all(-2 <= known <= new for known, new in versions.values())


@pytest.mark.parametrize(
    "pair", [[0.5, 1], [float("inf"), 1], [2, 1], [-3, 1], [1], [1, 2, 3], [True, 1], "ab", None]
)
def test_a_stream_that_leads_nowhere_is_refused(pair: Any):
    with pytest.raises(ValueError, match="message refused"):
        unfold(sent({"v": {"arrays": pair}}))


def test_records_come_back_as_they_were():
    content = RecordDict(
        {
            "config": ConfigRecord({"a": 1, "b": [1.5, 2.5], "c": b"xy", "d": True, "e": "f"}),
            "metrics": MetricRecord({"n": 3, "x": [1, 2]}),
        }
    )
    found, parts, versions = unfold(fold(content, {}, {"arrays": (0, 3)}))
    assert found == content
    assert (parts, versions) == ({}, {"arrays": (0, 3)})


def test_large_messages_travel_as_an_array_that_flower_cuts_into_chunks():
    part = Part(sections=(Section(group="head", codec="float32", body=bytes(LARGE)),))
    folded = fold(RecordDict(), {"arrays": (part,)}, {})
    assert isinstance(folded[KEY], ArrayRecord)
    assert unfold(folded)[1] == {"arrays": (part,)}
    assert unfold(folded).groups == {"head": LARGE}


def test_a_group_with_a_name_of_its_senders_choice_is_overhead():
    strange = Part(sections=(Section(group="$\\frac$", codec="float32", body=bytes(9)),))
    known = Part(sections=(Section(group="head", codec="float32", body=bytes(5)),))
    assert unfold(sent({}, ("arrays", strange), ("arrays", known))).groups == {"head": 5}


@pytest.mark.parametrize("twice", ["arrays", "metrics"])
def test_a_record_that_stands_twice_is_refused(twice: str):
    opaque = Part(sections=(Section(group="masked", codec="words", body=b"1"),))
    metrics = {"m": {"metrics": {"n": 1}}}
    with pytest.raises(ValueError, match=r"holds record .* twice"):
        unfold(sent(metrics, ("arrays", opaque), (twice, opaque)))


def numpy_file(shape: tuple[int, ...], dtype: str = "<f4", body: bytes = b"") -> bytes:
    """What `numpy.load` reads: a header that may promise anything, and a body."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + body


@pytest.mark.parametrize("name", [messages.PACKED, "weight"])
@pytest.mark.parametrize("record", [KEY, messages.ARRAYS])
@pytest.mark.parametrize(
    "data", [numpy_file((2**60,)), numpy_file((1,), "|O", pickle.dumps(["an object"]))]
)
def test_an_array_of_flower_is_neither_allocated_nor_unpickled(name: str, record: str, data: bytes):
    """What comes is a buffer or is refused: nothing in it is ever read as a file of numpy."""
    content = RecordDict({record: ArrayRecord({name: Array("float32", (2**60,), "numpy", data)})})
    tracemalloc.start()
    with pytest.raises(ValueError, match="message refused"):
        unfold(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"metrics": MetricRecord({"n": 1})}),
        RecordDict({KEY: ConfigRecord({"other": b"x"})}),
        RecordDict({KEY: ConfigRecord({KEY: "text"})}),
        RecordDict({KEY: packed_record(b"foreign", "x")}),
    ],
)
def test_a_message_that_is_not_folded_is_refused(content: RecordDict):
    with pytest.raises(ValueError, match="message refused"):
        unfold(content)


def test_bytes_are_counted_by_group_as_a_message_is_unfolded():
    part = Part(
        sections=(
            Section(group="lora_A", codec="float32", body=bytes(50)),
            Section(group="head", codec="float32", body=bytes(30)),
        )
    )
    assert unfold(sent({}, ("arrays", part))).groups == {"lora_A": 50, "head": 30}
