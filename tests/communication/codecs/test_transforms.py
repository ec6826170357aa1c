"""Transforms keep the largest scalars, or nearly the best approximation of a rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_vitlora.communication.codecs import Floats, parse
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.rice import best_parameter, read_positions, write_positions
from fl_vitlora.communication.codecs.topk import kept, largest
from fl_vitlora.communication.codecs.truncated_svd import factors
from tests.communication.codecs.vectors import KINDS, draw, energy, there_and_back, vector

SMALL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e30])
POSITIONS = st.sets(st.integers(0, 3000), min_size=1).map(sorted)


def matrix(m: int, c: int, rank: int) -> Floats:
    chance = draw(m + c)
    left, right = chance.standard_normal((m, rank)), chance.standard_normal((rank, c))
    return (left @ right).astype(np.float32)


@given(values=arrays(np.float32, st.integers(1, 50), elements=SMALL), data=st.data())
def test_the_largest_scalars_are_kept_and_no_other(values: Floats, data: st.DataObject):
    k = data.draw(st.integers(1, len(values)))
    positions = largest(values, k)
    assert len(positions) == min(k, np.count_nonzero(values))
    rest = np.delete(np.abs(values), positions)
    if len(positions) and len(rest):
        assert np.abs(values[positions]).min() >= rest.max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.0])
def test_what_top_k_keeps_it_keeps_bit_by_bit(kind: str, fraction: float):
    values = vector(kind)
    found = there_and_back(f"topk({fraction})", values)
    positions = largest(values, kept(len(values), fraction))
    assert np.flatnonzero(found).tolist() == positions.tolist()
    assert found[positions].tobytes() == values[positions].tobytes()


def test_of_equal_magnitudes_the_first_are_kept():
    assert there_and_back("topk(0.5)", np.array([1, -1, 1, -1], np.float32)).tolist() == [
        1,
        -1,
        0,
        0,
    ]


@given(positions=POSITIONS)
def test_positions_come_back(positions: list[int]):
    data = write_positions(np.array(positions))
    reader = ByteReader(data)
    assert read_positions(reader, len(positions), positions[-1] + 1).tolist() == positions
    reader.end()


@given(positions=POSITIONS)
def test_a_position_beyond_the_vector_is_refused(positions: list[int]):
    data = write_positions(np.array(positions))
    with pytest.raises(ValueError, match=r"beyond the end|exceed the length of the vector"):
        read_positions(ByteReader(data), len(positions), positions[-1])


@given(gaps=st.lists(st.integers(0, 100_000), min_size=1, max_size=30).map(np.array))
def test_no_other_parameter_is_better(gaps: np.ndarray):
    def cost(bits: int) -> int:
        return len(gaps) * (1 + bits) + int((gaps >> bits).sum())

    assert cost(best_parameter(gaps)) == min(cost(bits) for bits in range(41))


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.02, 0.001])
def test_positions_at_random_cost_little_more_than_their_entropy(fraction: float):
    positions = np.flatnonzero(draw().random(200_000) < fraction)
    entropy = -fraction * np.log2(fraction) - (1 - fraction) * np.log2(1 - fraction)
    most = 1.06 if fraction < 0.2 else 1.51  # gaps of mostly 0 bits want whole bits each
    assert 8 * len(write_positions(positions)) < most * 200_000 * entropy + 100


@pytest.mark.parametrize(("m", "c", "rank"), [(40, 30, 1), (30, 40, 3), (8, 300, 4), (300, 9, 2)])
def test_a_matrix_of_the_rank_is_kept(m: int, c: int, rank: int):
    A = matrix(m, c, rank)
    found = there_and_back(f"lowrank({rank})", A.reshape(-1), ((m, c),))
    assert energy(found - A.reshape(-1)) < 1e-10 * energy(A)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_matrix_is_approximated_nearly_as_well_as_possible(decay: float, rank: int):
    """Against the singular value decomposition, for spectra flat and steep: s_i = i^-decay."""
    chance = draw(4)
    U = np.linalg.qr(chance.standard_normal((96, 64))).Q
    V = np.linalg.qr(chance.standard_normal((64, 64))).Q
    s = np.arange(1, 65) ** -decay
    A = ((U * s) @ V).astype(np.float32)
    P, R = factors(A, rank, draw())
    best = np.square(s[rank:]).sum()
    assert energy(A - P.T @ R) <= 1.03 * best


def test_factors_are_equally_large():
    P, R = factors(matrix(40, 30, 5), 5, draw())
    assert np.linalg.norm(P, axis=1).tolist() == pytest.approx(np.linalg.norm(R, axis=1), rel=1e-4)


def test_small_tensors_go_whole():
    shapes = ((5,), (4, 4), (), (3, 2, 2))
    values = vector("normal", 34)
    assert there_and_back("lowrank(4)", values, shapes).tobytes() == values.tobytes()


def test_a_kernel_counts_as_a_matrix_of_its_outputs():
    A = matrix(32, 75, 2)
    data = parse("lowrank(2)").encode(A.reshape(-1), ((32, 3, 5, 5),), draw())
    assert len(data) == 4 * 2 * (32 + 75)
