"""Quantisers are off by what their papers say, and stochastic ones are right in the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_vitlora.communication.codecs import Floats, bfloat16, parse
from fl_vitlora.communication.codecs.normal_float import BETWEEN, LEVELS, nearest_level
from tests.communication.codecs.vectors import KINDS, draw, energy, there_and_back, vector

ROUNDED_UP = 1 + 2.0**-7  # a scale as bfloat16, relative to itself
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = arrays(np.float32, st.integers(1, 40), elements=FINITE)


def steps(values: Floats, block: int, levels: int) -> Floats:
    """Computes the most that a step may be, for each scalar."""
    largest = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), block))
    return np.repeat(largest, block)[: len(values)] * np.float32(ROUNDED_UP / levels)


@given(values=VECTORS)
def test_float32_keeps_every_bit(values: Floats):
    assert there_and_back("float32", values).tobytes() == values.tobytes()


@given(values=VECTORS)
def test_bfloat16_rounds_as_torch_does(values: Floats):
    within = np.clip(values, -3.38e38, 3.38e38)
    expected = torch.from_numpy(within).to(torch.bfloat16).float().numpy()
    assert there_and_back("bfloat16", within).tobytes() == expected.tobytes()


@given(values=VECTORS)
def test_float16_rounds_as_torch_does_and_clips(values: Floats):
    expected = torch.from_numpy(values).clamp(-65504, 65504).to(torch.float16).float().numpy()
    assert there_and_back("float16", values).tobytes() == expected.tobytes()


@given(values=VECTORS)
def test_a_bfloat16_that_is_rounded_up_is_the_next_one(values: Floats):
    magnitudes = np.minimum(np.abs(values), np.float32(3.38e38))
    halves = bfloat16.upward(magnitudes)
    assert (bfloat16.widened(halves) >= magnitudes).all()
    below = bfloat16.widened(np.maximum(halves, 1) - np.uint16(1))
    assert ((below < magnitudes) | (magnitudes == 0)).all()


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7), ("int2", 1)])
@pytest.mark.parametrize(("rounding", "most"), [("stochastic", 1.0), ("nearest", 0.5)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scalar_is_off_by_a_step_or_by_half_of_one(
    name: str, levels: int, rounding: str, most: float, kind: str
):
    values = vector(kind)
    error = np.abs(there_and_back(f"{name}(32,rounding={rounding})", values) - values)
    assert (error <= (most + 1e-4) * steps(values, 32, levels)).all()


STOCHASTIC = [
    ("int8(512)", np.inf, 127),
    ("int4(512)", np.inf, 7),
    ("int2(512,rounding=stochastic)", np.inf, 1),
    ("qsgd(7,512)", 2, 7),
    ("qsgd(1,512)", 2, 1),
]


@pytest.mark.parametrize(("spec", "norm", "levels"), STOCHASTIC)
@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_stochastic_rounding_is_right_in_the_mean(spec: str, norm: float, levels: int, kind: str):
    """Its standard deviation is at most half a step, and less for the mean of many draws."""
    values, draws = vector(kind, n=300), 1500
    found = [there_and_back(spec, values, seed=seed) for seed in range(draws)]
    step = np.linalg.norm(values, norm) / levels
    errors = (np.mean(found, axis=0, dtype=np.float64) - values) / step
    assert np.abs(errors).max() < 5 * 0.5 / draws**0.5
    assert abs(errors.mean()) < 5 * 0.5 / (draws * len(values)) ** 0.5


@pytest.mark.parametrize("spec", ["int4(rounding=nearest)", "nf4", "sign", "topk(0.1)+bfloat16"])
def test_without_chance_in_it_no_draw_matters(spec: str):
    codec, values = parse(spec), vector("normal")
    shapes = ((len(values),),)
    assert codec.encode(values, shapes, draw(1)) == codec.encode(values, shapes, draw(2))


def test_stochastic_rounding_draws_anew_each_time():
    chance, values = draw(), vector("normal")
    codec, shapes = parse("int4"), ((len(values),),)
    assert codec.encode(values, shapes, chance) != codec.encode(values, shapes, chance)


@pytest.mark.parametrize(("name", "size"), [("int8", 255), ("int4", 15), ("int2", 3)])
def test_a_block_has_as_many_levels_as_its_bits_allow(name: str, size: int):
    values = np.linspace(-1, 1, 5000, dtype=np.float32)
    assert len(np.unique(there_and_back(f"{name}(8192)", values))) == size


def test_normal_levels_are_the_published_ones():
    """To four digits, from appendix E of the paper."""
    published = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
    published += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
    assert LEVELS.tolist() == pytest.approx(published, abs=6e-5)
    assert LEVELS[[0, 7, 15]].tolist() == [-1, 0, 1]
    assert (np.diff(LEVELS) > 0).all()


@given(values=arrays(np.float32, 30, elements=st.floats(-1, 1, width=32)))
def test_nf4_takes_the_nearest_level(values: Floats):
    chosen = np.abs(LEVELS[nearest_level(values)] - values)
    best = np.abs(LEVELS[None] - values[:, None]).min(axis=1)
    assert chosen.tolist() == pytest.approx(best.tolist(), abs=1e-7)
    assert len(BETWEEN) == 15


def test_normal_values_use_all_levels_of_nf4_about_equally():
    symbols = nearest_level(np.clip(vector("normal", 100_000) / np.float32(3e-3), -1, 1))
    assert np.bincount(symbols, minlength=16).min() > 300


def test_a_norm_is_shared_by_the_levels_of_qsgd():
    """With one level, a scalar is the norm of its block or nothing."""
    values = vector("normal", 64)
    found = there_and_back("qsgd(1,block=64)", values)
    norm = np.linalg.norm(values)
    kept = np.abs(found[found != 0])
    assert kept.tolist() == pytest.approx([norm] * len(kept), rel=2.0**-7)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "one sign"])
def test_signs_keep_the_sum_of_magnitudes(kind: str):
    values = vector(kind, 1000)
    found = there_and_back("sign(64)", values)
    assert np.array_equal(found >= 0, values >= 0)
    blocks = range(0, 1000, 64)
    before, after = ([np.abs(x[i : i + 64]).sum() for i in blocks] for x in (values, found))
    assert after == pytest.approx(before, rel=2.0**-8)


def test_zero_counts_as_positive():
    values = np.array([2.0, 0.0, -2.0, -0.0], np.float32)
    assert there_and_back("sign", values).tolist() == [1.0, 1.0, -1.0, 1.0]


def test_equal_steps_stand_for_the_mean_of_what_was_rounded_to_them():
    """For a normal distribution, the mean error of a level is below what two bytes can tell."""
    values = vector("normal", 20_000)
    found = there_and_back("ecsq(1.2,block=32768)", values)
    step = 1.2 * np.sqrt(np.square(values).mean())
    sizes = np.rint(np.abs(found) / step)
    for chosen in (sizes == 1, sizes > 1):
        error = np.abs(values[chosen]).mean() - np.abs(found[chosen]).mean()
        assert abs(error) < step / 200
    assert (np.abs(values[sizes == 0]) < 0.51 * step).all()


@pytest.mark.parametrize(("step", "bits", "error"), [(1.0, 2.15, 0.28), (1.6, 1.56, 0.42)])
def test_equal_steps_are_near_the_bound_of_any_code(step: float, bits: float, error: float):
    """Shannon's least error at b bits is 2^-b: a quarter of a bit is lost, not more."""
    values = vector("normal", 50_000)
    codec = parse(f"ecsq({step})")
    data = codec.encode(values, ((50_000,),), draw())
    lost = np.sqrt(energy(codec.decode(data, ((50_000,),)) - values) / energy(values))
    assert 8 * len(data) / 50_000 == pytest.approx(bits, abs=0.06)
    assert lost == pytest.approx(error, abs=0.02)
    assert lost < 2 ** -(bits - 0.35)


def test_a_block_of_equal_magnitudes_is_not_lost():
    values = vector("alternating", 1000)
    assert np.array_equal(np.sign(there_and_back("ecsq(1.9)", values)), np.sign(values))
