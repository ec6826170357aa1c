"""Fixed point: an error bound, sums without a trace of order, and clipping that is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.fixed_point import (
    MOST_LOSS,
    Words,
    decode,
    encode,
    pack_words,
    to_numbers,
    to_words,
    unpack_words,
)
from fl_vitlora.communication.packing import HEADER, Layout, pack
from fl_vitlora.rng import generator
from fl_vitlora.state import State, mean

LIMIT = 4.0
LAYOUT = Layout((("a", (2, 3)), ("b", ()), ("c", (5,))))
CLIENTS = st.lists(
    st.tuples(st.floats(-5.0, 5.0), st.integers(1, 1000)), min_size=1, max_size=40
)  # (number, images)


def state(seed: int, size: float = 0.1) -> State:
    chance = generator(seed, "fixed point")
    return {name: torch.randn(shape, generator=chance) * size for name, shape in LAYOUT.shapes}


def added(words: list[Words]) -> Words:
    total: Words = np.sum(words, axis=0, dtype=np.uint32)
    return total


@given(clients=CLIENTS, limit=st.floats(0.01, 100.0))
def test_a_weighted_mean_is_off_by_rounding_alone(clients: list[tuple[float, int]], limit: float):
    total = sum(images for _, images in clients)
    words = [to_words(np.array([x]), limit, images / total) for x, images in clients]
    exact = sum(np.clip(x, -limit, limit) * images / total for x, images in clients)
    bound = len(clients) * limit / 2**31
    assert abs(to_numbers(added(words), limit, 1.0)[0] - exact) <= bound * (1 + 1e-6)


@given(clients=CLIENTS, absent=st.integers(0, 39))
def test_a_mean_of_some_is_divided_by_their_share(clients: list[tuple[float, int]], absent: int):
    total = sum(images for _, images in clients)
    left = [client for number, client in enumerate(clients) if number != absent] or clients
    share = sum(images for _, images in left) / total
    words = [to_words(np.array([x]), LIMIT, images / total) for x, images in left]
    exact = sum(np.clip(x, -LIMIT, LIMIT) * images for x, images in left) / (share * total)
    bound = len(left) * LIMIT / (2**31 * share)
    assert abs(to_numbers(added(words), LIMIT, share)[0] - exact) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("clients", [1, 3, 1000])
def test_no_sum_wraps_around(clients: int, sign: float):
    """Not where every client stands at the end of the range."""
    words = to_words(np.array([sign * 1e9]), LIMIT, 1 / clients)
    total = np.uint32(clients) * words
    assert to_numbers(total, LIMIT, 1.0)[0] == pytest.approx(sign * LIMIT, rel=1e-6)


def test_the_whole_range_fits_and_zero_is_zero():
    edges = np.array([-LIMIT, 0.0, LIMIT])
    words = to_words(edges, LIMIT, 1.0)
    assert words.tolist() == [2**32 - 2**30, 0, 2**30]
    assert to_numbers(words, LIMIT, 1.0).tolist() == edges.tolist()


@given(order=st.permutations(range(6)))
def test_sums_have_the_same_bits_in_any_order(order: list[int]):
    words = [encode(state(k), {}, 1.0, limit=LIMIT, share=1 / 6) for k in range(6)]
    assert (added([words[k] for k in order]) == added(words)).all()


@pytest.mark.parametrize("reports", [False, True])
def test_updates_average_as_floats_do(reports: bool):
    shares = [0.5, 0.3, 0.2]
    deltas, losses = [state(k) for k in range(3)], [0.5, 1.5, 3.0]
    beside = [state(10 + k) if reports else {} for k in range(3)]
    words = [
        encode(delta, report, loss, limit=LIMIT, share=share)
        for delta, report, loss, share in zip(deltas, beside, losses, shares, strict=True)
    ]
    result = decode(added(words), LAYOUT, limit=LIMIT, share=1.0)
    pairs = [(result.delta, mean(deltas, shares)), (result.report, mean(beside, shares))]
    for found, expected in pairs:
        assert Layout.of(found) == Layout.of(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=3 * LIMIT / 2**31)
    assert result.loss == pytest.approx(0.25 + 0.45 + 0.6, abs=3 * MOST_LOSS / 2**31)
    assert result.clipped == 0


def test_what_lies_beyond_the_range_is_clipped_and_counted():
    far = {**state(0), "b": torch.tensor(7.0), "c": torch.tensor([-9.0, 4.0, -4.0, 0.0, 4.5])}
    near = state(1)
    words = [encode(delta, far, 1e6, limit=LIMIT, share=0.5) for delta in (far, near)]
    result = decode(added(words), LAYOUT, limit=LIMIT, share=1.0)
    assert result.clipped == 3 + 2 * 3
    assert result.report["b"] == LIMIT
    assert result.report["c"].tolist() == pytest.approx([-4.0, 4.0, -4.0, 0.0, 4.0])
    assert result.loss == MOST_LOSS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_taken(dtype: torch.dtype):
    delta = {name: tensor.to(dtype) for name, tensor in state(0).items()}
    result = decode(encode(delta, {}, 0.0, limit=1.0, share=1.0), LAYOUT, limit=1.0, share=1.0)
    for name, tensor in delta.items():
        torch.testing.assert_close(result.delta[name], tensor.float(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_no_number_is_refused_before_it_is_hidden(bad: float):
    """In a sum nobody could tell whose it was."""
    spoilt = {**state(0), "b": torch.tensor(bad)}
    for delta, report, loss in ((spoilt, {}, 1.0), (state(0), spoilt, 1.0), (state(0), {}, bad)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            encode(delta, report, loss, limit=LIMIT, share=0.5)


def test_a_report_of_other_tensors_is_refused():
    for report in ({"a": torch.zeros(2, 3)}, dict(reversed(state(0).items()))):
        with pytest.raises(ValueError, match="in the same order"):
            encode(state(0), report, 1.0, limit=LIMIT, share=0.5)


@pytest.mark.parametrize("reports", [False, True])
def test_words_take_as_many_bytes_as_floats(reports: bool):
    delta, report = state(0), state(1) if reports else {}
    words = encode(delta, report, 1.0, limit=LIMIT, share=0.5)
    buffer = pack_words(words, LAYOUT)
    assert (unpack_words(buffer, LAYOUT) == words).all()
    assert len(buffer) == len(pack(delta)) + 4 * LAYOUT.scalars * reports + 8


@given(count=st.integers(0, 2**64 - 1), body=st.binary(max_size=80))
def test_a_header_that_promises_any_number_of_words_is_refused(count: int, body: bytes):
    if len(body) == 4 * count and count in (LAYOUT.scalars + 2, 2 * LAYOUT.scalars + 2):
        return  # it keeps its promise
    with pytest.raises(ValueError, match="message refused"):
        unpack_words(HEADER.pack(b"FVS1", LAYOUT.digest, count) + body, LAYOUT)


def test_foreign_words_are_refused():
    words = encode(state(0), {}, 1.0, limit=LIMIT, share=0.5)
    buffer, other = pack_words(words, LAYOUT), Layout((("a", (12,)),))
    assert other.scalars == LAYOUT.scalars
    short = HEADER.pack(b"FVS1", LAYOUT.digest, len(words) - 1) + bytes(4 * len(words) - 4)
    for foreign, layout, reason in (
        (pack(state(0)), LAYOUT, "expected the header of masked words"),
        (buffer[:10], LAYOUT, "expected the header of masked words"),
        (buffer, other, "do not fit the expected tensors"),
        (short, LAYOUT, "do not fit the expected tensors"),
        (buffer[:-1], LAYOUT, "need"),
        (buffer + b"0", LAYOUT, "need"),
    ):
        with pytest.raises(ValueError, match=f"message refused: .*{reason}"):
            unpack_words(foreign, layout)
