"""A tree of values, tensors and bytes comes out of a file as it went in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.storage.trees import build, flatten

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers()
trees = st.recursive(
    plain | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def through_a_file(tree: Any) -> Any:
    tensors, rest = flatten(tree)
    return build(tensors, json.loads(json.dumps(rest)))


@given(tree=trees)
def test_values_come_back_as_they_were(tree: Any) -> None:
    assert through_a_file(tree) == tree


def test_what_looks_like_a_marker_is_data() -> None:
    tree = {"tensor": "0", "map": [["a", {"bytes": "1"}]], "bytes": b"x"}
    assert through_a_file(tree) == tree


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_come_back_with_type_and_shape(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    found = through_a_file({"w": [tensor, tensor.T, torch.empty(0, 4, dtype=dtype)]})["w"]
    for one, was in zip(found, [tensor, tensor.T, torch.empty(0, 4, dtype=dtype)], strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, was)


def test_a_tensor_that_many_have_is_stored_once_and_shares_no_memory() -> None:
    tensor = torch.zeros(4)
    tensors, _ = flatten({1: tensor, 2: [tensor], "view": tensor[:2]})
    assert sorted(len(one) for one in tensors.values()) == [2, 4]
    assert len({one.data_ptr() for one in tensors.values()} | {tensor.data_ptr()}) == 3


def test_what_nobody_could_read_back_is_refused() -> None:
    with pytest.raises(
        TypeError, match="cannot store a value of the type set; expected None, truth values"
    ):
        flatten({"a": {1, 2}})
