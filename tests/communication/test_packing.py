"""What is packed is unpacked bit by bit; what is foreign, cut off or misfit is refused."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.communication.packing import HEADER, MAGIC, Layout, pack, unpack

SHAPES = st.dictionaries(
    st.text("ab.0", min_size=1, max_size=6),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    max_size=5,
)
STATE = {"a.weight": torch.tensor([[1.0, -2.0], [3.5, 0.0]]), "a.bias": torch.tensor([0.25])}
LAYOUT = Layout.of(STATE)


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@given(shapes=SHAPES)
def test_unpacking_inverts_packing_bit_by_bit(shapes: dict[str, tuple[int, ...]]):
    state = random_state(shapes)
    found = unpack(pack(state), Layout.of(state))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert all(found[name].shape == tensor.shape for name, tensor in state.items())


@given(shapes=SHAPES)
def test_a_buffer_is_four_bytes_a_scalar_and_a_header_of_20(shapes: dict[str, tuple[int, ...]]):
    state = random_state(shapes)
    assert len(pack(state)) == 20 + 4 * sum(tensor.numel() for tensor in state.values())


def test_numbers_that_are_not_finite_travel_too():
    state = {"w": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])}
    sent = unpack(pack(state), Layout.of(state))["w"]
    assert sent.numpy().tobytes() == state["w"].numpy().tobytes()


def test_the_body_are_little_endian_floats_in_the_order_of_the_layout():
    buffer = pack(STATE)
    assert buffer[:4] == b"FVL1"
    assert buffer[12:20] == (5).to_bytes(8, "little")
    assert struct.unpack("<5f", buffer[20:]) == (1.0, -2.0, 3.5, 0.0, 0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_travel_as_float32(dtype: torch.dtype):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    found = unpack(pack(state), LAYOUT)
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_views_and_trained_tensors_are_packed():
    state = {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).t()}
    assert unpack(pack(state), Layout.of(state))["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_is_unpacked_can_be_written_to():
    buffer = pack(STATE)
    first = unpack(buffer, LAYOUT)
    first["a.weight"].zero_()
    assert first["a.bias"].tolist() == [0.25]
    assert torch.equal(unpack(buffer, LAYOUT)["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize(
    ("buffer", "expectation"),
    [
        (b"", "expected the header of packed tensors"),
        (pack(STATE)[:19], "expected the header of packed tensors"),
        (b"PK\x03\x04" + pack(STATE)[4:], "expected the header of packed tensors"),
        (pack(STATE)[:-1], "5 scalars and the header need 40 bytes, got 39 bytes"),
        (pack(STATE)[:20], "5 scalars and the header need 40 bytes, got 20 bytes"),
        (pack(STATE) + b"\x00", "5 scalars and the header need 40 bytes, got 41 bytes"),
        (
            pack(STATE)[:5] + b"\x00" + pack(STATE)[6:],
            "its 5 scalars do not fit",
        ),
        (
            pack(STATE)[:12] + b"\x06" + pack(STATE)[13:],
            "its 6 scalars do not fit",
        ),
        (pack({}), "its 0 scalars do not fit"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(buffer: bytes, expectation: str):
    with pytest.raises(ValueError, match=expectation):
        unpack(buffer, LAYOUT)


@given(count=st.integers(0, 2**64 - 1), body=st.binary(max_size=50))
def test_a_header_that_promises_any_number_of_scalars_allocates_nothing(count: int, body: bytes):
    tracemalloc.start()
    for digest in (LAYOUT.digest, bytes(8)):
        try:
            found = unpack(HEADER.pack(MAGIC, digest, count) + body, LAYOUT)
        except ValueError:
            continue
        assert (digest, count, len(body)) == (LAYOUT.digest, 5, 20)
        assert Layout.of(found) == LAYOUT
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "other",
    [
        {"a.weight": STATE["a.weight"].flatten(), "a.bias": STATE["a.bias"]},
        {"a.bias": STATE["a.bias"], "a.weight": STATE["a.weight"]},
        {"b.weight": STATE["a.weight"], "a.bias": STATE["a.bias"]},
        {"a.weight": STATE["a.weight"]},
    ],
    ids=["another shape", "another order", "another name", "one less"],
)
def test_a_state_of_another_model_is_refused(other: dict[str, Tensor]):
    with pytest.raises(ValueError, match="do client and server build the same model"):
        unpack(pack(other), LAYOUT)


def test_a_layout_finds_and_leaves_out_names_by_their_endings():
    assert LAYOUT.ending_with((".bias", ".lora_A")) == {"a.bias"}
    assert LAYOUT.ending_with(()) == frozenset()
    assert LAYOUT.without(frozenset({"a.bias"})) == Layout((("a.weight", (2, 2)),))
    assert (LAYOUT.scalars, Layout(()).scalars) == (5, 0)
