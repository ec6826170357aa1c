"""States become records and records states."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State
from fl_vitlora.testing import made_up_model

MODEL = made_up_model()
LAYOUT = Layout.of(MODEL)


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], tensor) for name, tensor in b.items())


def test_a_packed_state_is_read_back_bit_by_bit():
    content = RecordDict({messages.ARRAYS: messages.to_packed(MODEL)})
    assert same(messages.from_packed(content, LAYOUT), MODEL)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"parameters": messages.to_packed(MODEL)}),
        RecordDict({messages.ARRAYS: messages.to_arrays(MODEL)}),
        RecordDict({messages.ARRAYS: ArrayRecord({"packed": Array(torch.zeros(3).numpy())})}),
    ],
    ids=["nothing", "another record", "arrays by name", "an array of another type"],
)
def test_a_message_without_a_packed_state_is_refused(content: RecordDict):
    with pytest.raises(ValueError, match="contains no packed tensors"):
        messages.from_packed(content, LAYOUT)


def test_a_packed_state_of_another_model_is_refused():
    content = RecordDict({messages.ARRAYS: messages.to_packed({"w": torch.zeros(2)})})
    with pytest.raises(ValueError, match="same model"):
        messages.from_packed(content, LAYOUT)


def test_arrays_by_name_are_read_back_in_the_order_of_the_layout():
    arrays = messages.to_arrays(dict(reversed(MODEL.items())))
    assert list(arrays) == list(reversed(MODEL))
    assert same(messages.from_arrays(arrays, LAYOUT), MODEL)


def test_what_a_strategy_returned_in_float64_becomes_float32():
    arrays = messages.to_arrays({name: tensor.double() for name, tensor in MODEL.items()})
    assert same(messages.from_arrays(arrays, LAYOUT), MODEL)


@pytest.mark.parametrize("wrong", [{}, {"head.bias": torch.zeros(4)}])
def test_a_strategy_that_returns_other_tensors_is_refused(wrong: dict[str, Tensor]):
    kept = {name: tensor for name, tensor in MODEL.items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"must return a tensor 'head\.bias' of shape \(3,\)"):
        messages.from_arrays(messages.to_arrays(kept | wrong), LAYOUT)


def test_numbers_are_read_and_lists_are_not():
    metrics = MetricRecord({"n": 3, "x": 0.5, "list": [1.0, 2.0]})
    assert (messages.scalar(metrics, "n"), messages.scalar(metrics, "x")) == (3, 0.5)
    for name in ("list", "missing"):
        with pytest.raises(ValueError, match=f"metric '{name}' is"):
            messages.scalar(metrics, name)
