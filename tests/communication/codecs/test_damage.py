"""Whatever the bytes are, decoding refuses them or gives a finite vector of the right length."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_vitlora.communication.codecs import parse
from fl_vitlora.communication.codecs.byte_reader import varint
from tests.communication.codecs.vectors import KINDS, SHAPES, SPECS, N, draw, vector

every_codec = pytest.mark.parametrize("spec", SPECS)
BUFFERS = {
    (spec, kind): parse(spec).encode(vector(kind), SHAPES, draw())
    for spec in SPECS
    for kind in KINDS
}


def read(spec: str, data: bytes) -> None:
    """Decodes, and holds what comes out to the contract."""
    with contextlib.suppress(ValueError):
        found = parse(spec).decode(data, SHAPES)
        assert found.shape == (N,)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


@every_codec
@given(data=st.binary(max_size=300))
def test_random_bytes(spec: str, data: bytes):
    read(spec, data)


@every_codec
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0, 1]))
@settings(max_examples=30)
def test_random_bytes_of_the_right_length(spec: str, seed: int, scale: int):
    length = len(BUFFERS[spec, "normal"])
    read(spec, bytes([scale]) + np.random.default_rng(seed).bytes(length - 1))


@every_codec
@given(kind=st.sampled_from(KINDS), flips=st.lists(st.integers(0), min_size=1, max_size=3))
def test_flipped_bits(spec: str, kind: str, flips: list[int]):
    data = bytearray(BUFFERS[spec, kind])
    for flip in flips:
        place = flip % (8 * len(data))
        data[place // 8] ^= 1 << place % 8
    read(spec, bytes(data))


@every_codec
@given(kind=st.sampled_from(KINDS), at=st.integers(0), splice=st.binary(min_size=1, max_size=9))
@settings(max_examples=50)
def test_bytes_put_in_between(spec: str, kind: str, at: int, splice: bytes):
    data = BUFFERS[spec, kind]
    place = at % len(data)
    read(spec, data[:place] + splice + data[place:])


@every_codec
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_always_refused(spec: str, kind: str):
    data = BUFFERS[spec, kind]
    for length in {0, 1, 2, len(data) // 2, len(data) - 1} - {len(data)}:
        with pytest.raises(ValueError, match=r"608 scalars coded with .* are refused"):
            parse(spec).decode(data[:length], SHAPES)


@every_codec
@pytest.mark.parametrize("more", [b"\0", b"\1", b"\xff" * 8])
def test_what_is_left_over_is_always_refused(spec: str, more: bytes):
    with pytest.raises(ValueError, match=r"608 scalars coded with .* are refused"):
        parse(spec).decode(BUFFERS[spec, "normal"] + more, SHAPES)


@pytest.mark.parametrize("spec", ["float32", "float16", "bfloat16", "topk(0.1)", "lowrank(2)"])
def test_numbers_that_are_not_finite_are_refused(spec: str):
    data = BUFFERS[spec, "normal"]
    infinite = {"float16": b"\x00\x7c", "bfloat16": b"\x80\x7f"}.get(spec, b"\x00\x00\x80\x7f")
    with pytest.raises(ValueError, match="finite"):
        parse(spec).decode(data[: -len(infinite)] + infinite, SHAPES)


@every_codec
def test_an_error_is_one_line(spec: str):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        parse(spec).decode(b"\xff" * 7, SHAPES)


@every_codec
@given(at=st.integers(0), number=st.integers(2**20, 2**63 - 1), over=st.integers(0, 9))
@settings(max_examples=30)
def test_numbers_however_large_allocate_nothing(spec: str, at: int, number: int, over: int):
    """A count that stands anywhere in a vector of 608 scalars may promise 2⁶⁰ of them."""
    data = BUFFERS[spec, "normal"]
    place = at % len(data)
    tracemalloc.start()
    read(spec, data[:place] + varint(number) + data[place + over :])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
