"""What every codec promises: a vector of the same length back, bytes that only the draw decides."""

from __future__ import annotations

import numpy as np
import pytest

from fl_vitlora.communication.codecs import Shapes, parse
from tests.communication.codecs.vectors import (
    KINDS,
    SHAPES,
    SPECS,
    N,
    draw,
    energy,
    there_and_back,
    vector,
)

every_codec = pytest.mark.parametrize("spec", SPECS)


@every_codec
@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_comes_back_with_its_length_and_type(spec: str, kind: str):
    found = there_and_back(spec, vector(kind), SHAPES)
    assert found.shape == (N,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@every_codec
def test_the_same_draw_gives_the_same_bytes(spec: str):
    codec, values = parse(spec), vector("normal")
    assert codec.encode(values, SHAPES, draw(3)) == codec.encode(values, SHAPES, draw(3))


@every_codec
def test_the_same_bytes_give_the_same_vector(spec: str):
    codec = parse(spec)
    data = codec.encode(vector("normal"), SHAPES, draw())
    assert codec.decode(data, SHAPES).tobytes() == codec.decode(data, SHAPES).tobytes()


@every_codec
@pytest.mark.parametrize("kind", KINDS)
def test_who_sends_knows_to_the_bit_what_arrives(spec: str, kind: str):
    codec, values = parse(spec), vector(kind)
    data, arriving = codec.send(values, SHAPES, draw(3))
    assert data == codec.encode(values, SHAPES, draw(3))
    assert arriving.tobytes() == codec.decode(data, SHAPES).tobytes()


@every_codec
def test_the_vector_that_is_written_stays_as_it_was(spec: str):
    values = vector("normal")
    there_and_back(spec, values, SHAPES)
    assert values.tobytes() == vector("normal").tobytes()


@every_codec
def test_what_is_decoded_can_be_written_to(spec: str):
    found = there_and_back(spec, vector("normal"), SHAPES)
    found += 1


@every_codec
@pytest.mark.parametrize("shapes", [(), ((0,),), ((3, 0), (0, 2))])
def test_an_empty_vector_takes_no_bytes(spec: str, shapes: Shapes):
    codec = parse(spec)
    assert codec.encode(np.empty(0, np.float32), shapes, draw()) == b""
    assert codec.decode(b"", shapes).shape == (0,)
    with pytest.raises(ValueError, match="1 bytes are left after the last expected byte"):
        codec.decode(b"\0", shapes)


@every_codec
def test_zeros_come_back_as_zeros(spec: str):
    assert not there_and_back(spec, np.zeros(N, np.float32), SHAPES).any()


@pytest.mark.parametrize(
    "spec", ["int8", "int4", "int2", "ecsq", "nf4", "qsgd", "sign", "topk(0.1)"]
)
def test_zeros_cost_little(spec: str):
    zeros = np.zeros(100_000, np.float32)
    assert len(parse(spec).encode(zeros, ((100_000,),), draw())) < 1000


@every_codec
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3])
def test_a_single_scalar_is_kept_within_a_tenth(spec: str, value: float):
    found = there_and_back(spec, np.array([value], np.float32), ((),))
    assert found.tolist() == pytest.approx([value], rel=0.1)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "float16"])
@pytest.mark.parametrize("exponent", [-90, 110])
def test_a_vector_of_any_magnitude_is_kept_equally_well(spec: str, exponent: int):
    """Scaled by a power of two, which is exact, codecs make the same choices: 1e-30 to 1e30."""
    values, factor = vector("normal"), np.float32(2.0**exponent)
    scaled = there_and_back(spec, values * factor, ((32, 19),))
    assert np.array_equal(scaled, there_and_back(spec, values, ((32, 19),)) * factor)


@every_codec
@pytest.mark.parametrize("value", [3.4028235e38, 1e-38, 1e-45])
def test_the_ends_of_float32_stay_finite(spec: str, value: float):
    alternating = vector("alternating") / np.float32(1e-3)
    found = there_and_back(spec, alternating * np.float32(value), SHAPES)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= np.float32(3.4028235e38)


@every_codec
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_written(spec: str, value: float):
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        there_and_back(spec, np.array([1, value], np.float32))


@every_codec
def test_a_vector_of_other_shapes_is_not_written(spec: str):
    with pytest.raises(ValueError, match="expected a vector of 608 scalars, got shape"):
        parse(spec).encode(np.ones(3, np.float32), SHAPES, draw())


@every_codec
def test_only_a_lossless_codec_says_so(spec: str):
    exact = there_and_back(spec, vector("normal"), SHAPES).tobytes() == vector("normal").tobytes()
    assert parse(spec).lossless == exact


# δ: the share of a vector's energy that a codec takes at the least, so that errors which are fed
# back stay bounded (arXiv 1901.09847, assumption A). Blocks keep at least their largest scalar.
CONTRACTIONS = [
    ("float16", 0.99),
    ("bfloat16", 0.99),
    ("int8(rounding=nearest)", 0.98 / 64),
    ("int4(rounding=nearest)", 0.98 / 64),
    ("int2", 0.98 / 128),
    ("ecsq", 0.98 / 1024),
    ("nf4", 0.98 / 64),
    ("sign", 0.98 / 256),
    ("topk(0.1)", 0.1),
    ("topk(0.1)+bfloat16", 0.099),
    ("topk(0.1)+int4(rounding=nearest)", 0.098 / 64),
    ("topk(0.1)+sign", 0.098 / 256),
]


@every_codec
def test_a_codec_that_says_so_contracts_every_vector(spec: str):
    """In the mean over draws."""
    codec = parse(spec)
    shares = []
    for kind in KINDS:
        values = vector(kind)
        lost = [energy(there_and_back(spec, values, SHAPES, seed) - values) for seed in range(5)]
        if energy(values):
            shares.append(np.mean(lost) / energy(values))
    assert max(shares) < 1 or not codec.contracts


@pytest.mark.parametrize("spec", ["int2(rounding=stochastic)", "qsgd(1,block=64)"])
def test_a_codec_that_says_it_strays_has_a_reason(spec: str):
    values = vector("normal")
    lost = [energy(there_and_back(spec, values, SHAPES, seed) - values) for seed in range(20)]
    assert not parse(spec).contracts
    assert np.mean(lost) > energy(values)


def test_coarse_factors_of_one_matrix_stray_by_their_product():
    """Both factors are half ones: each is rounded up, and the product is four times too large."""
    u = np.full(256, 0.51, np.float32)
    u[::128] = 1
    matrix = np.outer(u, u).reshape(-1).astype(np.float32)
    lost = energy(there_and_back("lowrank(1)+int2", matrix, ((256, 256),)) - matrix)
    assert lost > energy(matrix)
    assert not parse("lowrank(1)+int2").contracts
    assert parse("lowrank(1)+int8").contracts


@pytest.mark.parametrize(("spec", "delta"), CONTRACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_is_less_than_what_there_was(spec: str, delta: float, kind: str):
    for seed in range(5):
        values = vector(kind, seed=seed)
        lost = energy(values - there_and_back(spec, values))
        assert lost <= (1 - delta) * energy(values)
