"""Draws from the key stream are unbiased, repeatable, and bounded by rejection."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.encryption.keystream import KeyStream

KEY = bytes(range(32))

# 99.9 % of chi-square values lie below: 5 and 6 degrees of freedom
CHI_SQUARE_5, CHI_SQUARE_6 = 20.52, 22.46


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_all_orders_of_three_are_equally_frequent():
    stream = KeyStream(KEY)
    seen = Counter(tuple(stream.permutation(3).tolist()) for _ in range(6000))
    assert len(seen) == 6
    assert chi_square(list(seen.values())) < CHI_SQUARE_5


def test_numbers_below_seven_are_equally_frequent():
    stream = KeyStream(KEY)
    seen = Counter(stream.below(7) for _ in range(7000))
    assert sorted(seen) == list(range(7))
    assert chi_square(list(seen.values())) < CHI_SQUARE_6


def test_words_that_would_favour_small_numbers_are_rejected():
    """Below 3 · 2^30 a plain remainder would take half of its values from the first third."""
    stream, third = KeyStream(KEY), 2**30
    drawn = [stream.below(3 * third) for _ in range(3000)]
    thirds = Counter(number // third for number in drawn)
    assert sorted(thirds) == [0, 1, 2]
    assert chi_square([thirds[i] for i in range(3)]) < CHI_SQUARE_5
    words = KeyStream(KEY)
    accepted = [word for word in (words.below(2**32) for _ in range(4000)) if word < 3 * third]
    assert drawn[: len(accepted)] == accepted[: len(drawn)]
    assert len(accepted) < 3200


@given(bound=st.integers(1, 2**32), key=st.binary(min_size=32, max_size=32))
def test_numbers_stay_below_their_bound(bound: int, key: bytes):
    stream = KeyStream(key)
    assert all(0 <= stream.below(bound) < bound for _ in range(5))


@given(
    bound=st.integers(1, 2**32), count=st.integers(0, 40), key=st.binary(min_size=32, max_size=32)
)
def test_many_numbers_are_those_drawn_one_by_one(bound: int, count: int, key: bytes):
    """Words that are passed over, half of them for an awkward bound, included."""
    many, one = KeyStream(key), KeyStream(key)
    for limit in (bound, 2**31 + 1):
        assert many.numbers(limit, count).tolist() == [one.below(limit) for _ in range(count)]
    assert many.below(2**32) == one.below(2**32)  # both have read as much of the stream


@given(count=st.integers(1, 40), length=st.integers(1, 20), key=st.binary(min_size=32, max_size=32))
def test_many_permutations_are_those_drawn_one_by_one(count: int, length: int, key: bytes):
    """Side by side (more than they are long) or one by one; Fisher and Yates by the book."""
    many, one = KeyStream(key), KeyStream(key)
    for drawn in many.permutations(count, length).tolist():
        order = list(range(length))
        for last in range(length - 1, 0, -1):
            chosen = one.below(last + 1)
            order[last], order[chosen] = order[chosen], order[last]
        assert drawn == order


@given(length=st.integers(1, 60), key=st.binary(min_size=32, max_size=32))
def test_a_permutation_has_every_number_once(length: int, key: bytes):
    assert sorted(KeyStream(key).permutation(length).tolist()) == list(range(length))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 768])
def test_bits_are_as_many_as_asked(length: int):
    assert KeyStream(KEY).bits(length).shape == (length,)


def test_bits_are_fair_and_independent():
    bits = KeyStream(KEY).bits(8000).tolist()
    pairs = Counter(pairwise(bits))
    assert chi_square([pairs[a, b] for a in (False, True) for b in (False, True)]) < CHI_SQUARE_5


def test_the_same_key_repeats_and_another_does_not():
    one, same, other = KeyStream(KEY), KeyStream(KEY), KeyStream(KEY[::-1])
    first = [one.below(1000) for _ in range(20)]
    assert first == [same.below(1000) for _ in range(20)]
    assert first != [other.below(1000) for _ in range(20)]
    assert first != [one.below(1000) for _ in range(20)]


def test_words_in_parts_are_those_drawn_at_once():
    parts, whole = KeyStream(KEY), KeyStream(KEY)
    assert [*parts.words(3), *parts.words(0), *parts.words(70)] == whole.words(73).tolist()


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_normal_numbers_are_as_many_as_asked(count: int):
    assert KeyStream(KEY).normals(count).shape == (count,)


def test_normal_numbers_are_normal():
    """Their distribution lies within the 99.9 % band of Kolmogorov and Smirnov, 1.95 / √n."""
    drawn = np.sort(KeyStream(KEY).normals(20_000))
    steps = np.arange(1, len(drawn) + 1) / len(drawn)
    expected = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in drawn])
    assert np.abs(steps - expected).max() < 1.95 / math.sqrt(len(drawn))


def test_normal_numbers_are_independent():
    """No correlation of neighbours, nor of the two of a pair, not even of their squares."""
    drawn = KeyStream(KEY).normals(20_000)
    first, second = drawn.reshape(2, -1)
    for a, b in ((drawn[1:], drawn[:-1]), (first, second), (first**2, second**2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 3.3 / math.sqrt(len(a))


def test_the_stream_is_that_of_rfc_8439():
    """The zero key and nonce give the bytes 76 b8 e0 ad …: appendix A.1, test vector 1."""
    assert KeyStream(bytes(32)).below(2**32) == 0xADE0B876
    assert [hex(word) for word in KeyStream(bytes(32)).words(2)] == ["0xade0b876", "0x903df1a0"]
