"""The wire format: what is written is read, and nothing else is."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_vitlora.communication import parcel
from fl_vitlora.communication.codecs.byte_reader import varint
from fl_vitlora.communication.parcel import Parcel, Part, Section, read, write

names = st.text(max_size=12)
scalars = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(max_size=20),
    names,
)
plains = st.dictionaries(
    names, st.dictionaries(names, scalars | st.lists(scalars, max_size=4), max_size=4), max_size=3
)
sections = st.builds(Section, group=names, codec=names, body=st.binary(max_size=60))
parts = st.builds(
    Part,
    digest=st.binary(max_size=8),
    marks=st.binary(max_size=4),
    sections=st.lists(sections, max_size=4).map(tuple),
)
parcels = st.builds(
    Parcel, plain=plains, parts=st.lists(st.tuples(names, parts), max_size=3).map(tuple)
)

BEGIN = len(parcel.MAGIC) + parcel.CHECKSUM_BYTES
SAMPLE = write(
    Parcel(
        plain={"c": {"config": {"server-round": 3, "learning-rate": 0.01}}},
        parts=(
            (
                "arrays",
                Part(
                    digest=bytes(range(8)),
                    sections=(
                        Section(group="lora_A", codec="int4", body=bytes(range(50))),
                        Section(group="head", codec="topk(0.1)+sign", body=bytes(30)),
                    ),
                ),
            ),
        ),
    )
)


@given(parcels)
def test_what_is_written_is_read(whole: Parcel):
    assert read(write(whole)) == whole


@given(parcels)
def test_writing_twice_gives_the_same_bytes(whole: Parcel):
    assert write(whole) == write(read(write(whole)))


@given(st.lists(parcels, max_size=6))
def test_what_is_written_once_for_many_is_what_each_would_be_written(wholes: list[Parcel]):
    known: dict[object, bytes] = {}
    written = [write(whole, known) for whole in [*wholes, *wholes]]
    assert written == [write(whole) for whole in [*wholes, *wholes]]
    assert len(known) == len(set(written))


def test_numbers_of_other_types_are_not_taken_for_each_other():
    known: dict[object, bytes] = {}
    for value in (1, 1.0, True):
        found = read(write(Parcel(plain={"a": value}), known)).plain["a"]
        assert type(found) is type(value)


def test_a_usual_message_adds_less_than_100_bytes():
    assert len(SAMPLE) - 80 < 100


@pytest.mark.parametrize("bit", range(8 * len(SAMPLE)))
def test_a_flipped_bit_is_found(bit: int):
    flipped = bytearray(SAMPLE)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="message refused"):
        read(bytes(flipped))


@pytest.mark.parametrize("length", range(len(SAMPLE)))
def test_a_buffer_that_was_cut_is_refused(length: int):
    """Even if the sender made its checksum after the cut."""
    with pytest.raises(ValueError, match="message refused"):
        read(SAMPLE[:length])
    with pytest.raises(ValueError, match="message refused"):
        read(forged(SAMPLE[BEGIN:length]))


@given(st.binary(min_size=1, max_size=40))
def test_a_buffer_that_goes_on_is_refused(more: bytes):
    with pytest.raises(ValueError, match="cut or corrupted"):
        read(SAMPLE + more)


@given(st.binary(max_size=300))
def test_a_foreign_buffer_is_refused(data: bytes):
    with pytest.raises(ValueError, match="message refused"):
        read(data)


def forged(rest: bytes) -> bytes:
    """A buffer whose checksum is right, whatever follows it."""
    return parcel.MAGIC + parcel._checksum(rest) + rest


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_a_right_checksum_over_anything_crashes_nothing(rest: bytes):
    try:
        found = read(forged(rest))
    except ValueError:
        return
    assert read(write(found)) == found


heads = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner)
)


@given(heads, st.binary(max_size=40))
@settings(max_examples=300)
def test_a_head_of_another_form_is_refused_or_read(head: Any, bodies: bytes):
    packed = msgpack.packb(head)
    deflate = zlib.compressobj(9, wbits=-15, zdict=parcel.DICTIONARY)
    deflated = deflate.compress(packed) + deflate.flush()
    lengths = varint(len(deflated)) + varint(len(packed))
    try:
        found = read(forged(lengths + deflated + bodies))
    except ValueError as error:
        assert "message refused" in str(error)
        return
    assert isinstance(found, Parcel)


def test_a_small_buffer_makes_nobody_allocate_much():
    """A head that says it inflates to a gigabyte, and one that does though it says otherwise."""
    bomb = zlib.compressobj(9, wbits=-15)
    deflated = b"".join(bomb.compress(bytes(2**20)) for _ in range(200)) + bomb.flush()
    for said in (2**30, 2**20, 16 * len(deflated), 10):
        lengths = varint(len(deflated)) + varint(said)
        tracemalloc.start()
        with pytest.raises(ValueError, match="message refused"):
            read(forged(lengths + deflated))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * len(deflated)


def test_many_small_things_take_no_more_than_their_bytes_justify():
    """Empty mappings deflate well, and each takes sixty times its byte in memory."""
    head = msgpack.packb([{}, [{}] * 2**22])
    deflate = zlib.compressobj(9, wbits=-15, zdict=parcel.DICTIONARY)
    deflated = deflate.compress(head) + deflate.flush()
    data = forged(varint(len(deflated)) + varint(len(head)) + deflated)
    assert len(data) < 10_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="a length of its head that is too large"):
        read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_another_version_of_the_format_is_called_so():
    with pytest.raises(ValueError, match="both sides must have the same version"):
        read(b"FVL9" + SAMPLE[4:])


def test_lengths_beyond_the_buffer_are_refused():
    for short in (2**40, 2**62):
        with pytest.raises(ValueError, match=rf"refused: .* cut off: expected {short} more bytes"):
            read(forged(varint(short) + varint(5) + b"x"))
    with pytest.raises(ValueError, match=r"message refused: .* more bytes than it needs"):
        read(forged(b"\xff" * 20))
