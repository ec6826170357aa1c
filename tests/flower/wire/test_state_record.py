"""Tensors between an end of the wire and the app: packed for whoever looks, and for no one else."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.state_record import OPENING, StateRecord, holds_state, state_in
from fl_vitlora.state import State
from fl_vitlora.testing import made_up_model

MODEL = made_up_model()
LAYOUT = Layout.of(MODEL)


def layout() -> Layout:
    return LAYOUT


def never() -> Layout:
    raise AssertionError("nothing was packed, so nothing is unpacked")


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


def test_a_record_that_nobody_opens_hands_on_the_tensors_themselves():
    record = StateRecord(MODEL)
    assert holds_state(record)
    assert state_in(record, never) is MODEL
    assert type(record) is StateRecord


LOOKS: dict[str, Callable[[Any], object]] = {
    "reading": lambda record: record[messages.PACKED],
    "listing": list,
    "counting": len,
    "asking for a name": lambda record: messages.PACKED in record,
    "names": lambda record: list(record.keys()),
    "arrays": lambda record: list(record.values()),
    "both": lambda record: list(record.items()),
    "showing": repr,
    "comparing": lambda record: record == ArrayRecord(),
    "comparing from the left": lambda record: ArrayRecord() == record,
    "serialising": lambda record: record.deflate(),
    "measuring": lambda record: record.count_bytes(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_record_that_is_looked_into_is_an_ordinary_one(look: str):
    record, ordinary = StateRecord(MODEL), messages.to_packed(MODEL)
    LOOKS[look](record)
    assert type(record) is ArrayRecord
    assert record == ordinary
    assert record.object_id == ordinary.object_id
    assert same(state_in(record, layout), MODEL)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": lambda record: record.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda record: pickle.loads(pickle.dumps(record)),
}


@pytest.mark.parametrize("make", COPIES)
def test_a_copy_is_an_ordinary_record(make: str):
    found = COPIES[make](StateRecord(MODEL))
    assert type(found) is ArrayRecord
    assert same(state_in(found, layout), MODEL)


CHANGES: dict[str, Callable[[Any, Array], object]] = {
    "assigning": lambda record, array: record.__setitem__(messages.PACKED, array),
    "updating": lambda record, array: record.update({messages.PACKED: array}),
    "replacing": lambda record, array: (record.clear(), record.setdefault("packed", array)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_a_record_is_read(change: str):
    record, other = StateRecord(MODEL), {n: tensor + 1 for n, tensor in MODEL.items()}
    CHANGES[change](record, messages.to_packed(other)[messages.PACKED])
    assert same(state_in(record, layout), other)


def test_what_is_removed_from_a_record_is_missed():
    record = StateRecord(MODEL)
    del record[messages.PACKED]
    assert not holds_state(record)
    with pytest.raises(ValueError, match="contains no packed tensors"):
        state_in(record, layout)


def test_every_method_of_an_ordinary_record_that_reads_its_arrays_opens_it():
    """A version of Flower with a new one would otherwise show an empty record."""
    from flwr.app.message.typeddict import TypedDict

    own = {name for name, value in vars(TypedDict).items() if callable(value)}
    assert own - {"__init__", "__class_getitem__"} <= set(OPENING)


@pytest.mark.parametrize("record", [None, ArrayRecord(), messages.to_arrays(MODEL)])
def test_a_record_without_a_packed_state_is_refused(record: ArrayRecord | None):
    with pytest.raises(ValueError, match="contains no packed tensors"):
        state_in(record, layout)
