"""Symbols, bits and numbers come back; skewed symbols take little more than their entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.codecs import bits
from fl_vitlora.communication.codecs.byte_reader import ByteReader, varint
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols

SYMBOLS = st.integers(2, 256).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.integers(0, size - 1), min_size=1, max_size=300)
        | st.integers(0, size - 1).map(lambda symbol: [symbol] * 5000),
    )
)


def skewed(n: int, rare: float) -> bits.Symbols:
    return np.random.default_rng(0).choice(3, n, p=[rare, 1 - 3 * rare, 2 * rare]).astype(np.uint8)


def entropy_bytes(symbols: bits.Symbols) -> float:
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    return float(-len(symbols) * (shares * np.log2(shares)).sum() / 8)


@given(drawn=SYMBOLS)
def test_symbols_come_back_and_nothing_is_left(drawn: tuple[int, list[int]]):
    size, symbols = drawn
    reader = ByteReader(write_symbols(np.array(symbols, np.uint8), size))
    assert read_symbols(reader, len(symbols), size).tolist() == symbols
    reader.end()


@given(drawn=SYMBOLS)
def test_coding_costs_at_most_one_byte(drawn: tuple[int, list[int]]):
    size, symbols = drawn
    plain = bits.packed_bytes(len(symbols), bits.width(size))
    assert len(write_symbols(np.array(symbols, np.uint8), size)) <= 1 + plain


@pytest.mark.parametrize("rare", [0.2, 0.05, 0.01, 0.001, 0.0001])
def test_skewed_symbols_take_two_percent_more_than_their_entropy(rare: float):
    symbols = skewed(100_000, rare)
    mode, table, words = 1, 3, 3 + 4  # and the last word, that is not full
    assert len(write_symbols(symbols, 3)) <= 1.02 * entropy_bytes(symbols) + mode + table + words


def test_symbols_that_are_equally_frequent_are_packed():
    symbols = np.random.default_rng(0).integers(0, 16, 10_000).astype(np.uint8)
    assert len(write_symbols(symbols, 16)) == 1 + 5000


@pytest.mark.parametrize(
    ("data", "expectation"),
    [
        (b"", "cut off"),
        (b"\2" + b"\0" * 9, "unknown format"),
        (b"\0\xff\xff", "must be below 3"),
        (b"\1\0\0\0\0", "no range coder has written them"),
        (b"\1\x01\x01\x01\x00", "frequencies"),
        (b"\1\x01\x01\x01\xff\xff\xff\x7f", "cut off"),
    ],
)
def test_foreign_symbols_are_refused(data: bytes, expectation: str):
    with pytest.raises(ValueError, match=expectation):
        read_symbols(ByteReader(data), 8, 3)


@pytest.mark.parametrize("place", range(1, 40))
def test_no_byte_of_coded_symbols_can_change_unseen(place: int):
    data = bytearray(write_symbols(skewed(5000, 0.01), 3))
    data[place] ^= 0x10
    with pytest.raises(ValueError, match=r"cut off|frequencies|words|left after the last"):
        reader = ByteReader(bytes(data))
        read_symbols(reader, 5000, 3)
        reader.end()


@given(
    words=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1]), max_size=8),
    table=st.binary(min_size=3, max_size=3),
)
def test_any_words_give_symbols_or_are_refused(words: list[int], table: bytes):
    data = b"\1" + table + varint(len(words)) + np.array(words, "<u4").tobytes()
    try:
        symbols = read_symbols(ByteReader(data), 200, 3)
    except ValueError:
        return
    assert write_symbols(symbols, 3) == data


@given(numbers=st.lists(st.integers(0, 255)), width=st.integers(1, 8))
def test_packed_numbers_come_back(numbers: list[int], width: int):
    small = np.array(numbers, np.uint8) & np.uint8(2**width - 1)
    data = bits.pack(small, width)
    assert len(data) == bits.packed_bytes(len(small), width)
    assert bits.unpack(data, len(small), width).tolist() == small.tolist()


@given(number=st.integers(0, 2**63 - 1))
def test_whole_numbers_come_back(number: int):
    reader = ByteReader(varint(number))
    assert reader.varint() == number
    reader.end()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 10, b"\x80" * 9 + b"\x01"])
def test_what_is_no_whole_number_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"cut off|more bytes than it needs"):
        ByteReader(data).varint()
