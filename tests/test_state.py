"""The algebra of states: linear, pure, and the mean against a loop over Python's fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flwr.supercore.differential_privacy import (
    compute_adaptive_clip_model_update,
    compute_clip_model_update,
)
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.state import (
    State,
    add,
    clip_norm,
    clone,
    count,
    is_finite,
    is_within,
    l2_norm,
    mean,
    scale,
    subtract,
    zip_map,
)

NUMBERS = st.integers(-(2**10), 2**10)
STATES = st.tuples(*[NUMBERS] * 3).map(
    lambda n: {"b": torch.tensor([float(n[0]), float(n[1])]), "a": torch.tensor(float(n[2]))}
)
WEIGHTED = st.lists(st.tuples(STATES, st.integers(1, 100)), min_size=1, max_size=5)


def numbers(state: State) -> list[float]:
    return [x for tensor in state.values() for x in tensor.flatten().tolist()]


@given(a=STATES, b=STATES)
def test_subtracting_undoes_adding(a: State, b: State):
    assert numbers(subtract(add(a, b), b)) == numbers(a)


@given(a=STATES, factor=st.integers(-8, 8))
def test_scaling_multiplies_every_number(a: State, factor: int):
    assert numbers(scale(a, factor)) == [factor * x for x in numbers(a)]


@given(weighted=WEIGHTED)
def test_mean_is_the_mean_of_fractions(weighted: list[tuple[State, int]]):
    states, weights = [s for s, _ in weighted], [w for _, w in weighted]
    slow = [
        float(sum(Fraction(x) * w for x, w in zip(column, weights, strict=True)) / sum(weights))
        for column in zip(*map(numbers, states), strict=True)
    ]
    assert numbers(mean(states, weights)) == pytest.approx(slow, rel=1e-6, abs=1e-9)


@given(a=STATES, weights=st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_mean_of_equal_states_is_that_state(a: State, weights: list[int]):
    assert numbers(mean([a] * len(weights), weights)) == pytest.approx(numbers(a))


def test_mean_sums_in_float64():
    states = [{"w": torch.tensor([1e8])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([-1e8])}]
    assert float(mean(states, [1, 1, 1])["w"]) == pytest.approx(1 / 3, rel=1e-6)


def test_a_weight_of_zero_leaves_a_state_out():
    assert mean([{"w": torch.tensor([1.0])}, {"w": torch.tensor([9.0])}], [5, 0]) == {
        "w": torch.tensor([1.0])
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_mean_keeps_the_type(dtype: torch.dtype):
    assert mean([{"w": torch.ones(2, dtype=dtype)}], [3])["w"].dtype == dtype


@pytest.mark.parametrize(
    ("states", "weights"),
    [([], []), ([{}], []), ([{}], [0]), ([{}, {}], [1, -1]), ([{}, {}], [3, -1])],
)
def test_weights_that_mean_nothing_are_refused(states: list[State], weights: list[float]):
    with pytest.raises(ValueError, match=r"weights|averaged"):
        mean(states, weights)


def test_states_of_other_names_are_refused_and_named():
    with pytest.raises(ValueError, match=r"\['b', 'c'\]"):
        add({"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)})


def test_the_first_state_decides_the_order_of_names():
    a, b = {"x": torch.ones(1), "y": torch.ones(1)}, {"y": torch.ones(1), "x": torch.zeros(1)}
    assert list(add(a, b)) == ["x", "y"]
    assert list(zip_map(torch.maximum, b, a)) == ["y", "x"]


def test_results_share_no_memory_with_what_they_came_from():
    a = {"w": torch.tensor([1.0, 2.0])}
    for result in (clone(a), add(a, {"w": torch.zeros(2)}), scale(a, 1.0), mean([a], [1])):
        result["w"].fill_(7)
    assert a["w"].tolist() == [1.0, 2.0]


def test_a_clone_has_no_gradient():
    assert not clone({"w": torch.nn.Parameter(torch.ones(1))})["w"].requires_grad


def test_the_norm_runs_over_all_tensors_together():
    assert l2_norm({"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([-4.0])}) == 5.0
    assert l2_norm({"a": torch.full((1,), 1e30)}) == pytest.approx(1e30)


@given(a=STATES, most=st.floats(1e-3, 1e4))
def test_a_clipped_state_points_where_it_did_and_is_no_longer_than_it_may_be(a: State, most: float):
    clipped, within = clip_norm(a, most)
    assert within == (l2_norm(a) <= most)
    assert l2_norm(clipped) == pytest.approx(min(l2_norm(a), most), rel=1e-6)
    if within:
        assert numbers(clipped) == numbers(a)
    else:
        assert numbers(clipped) == pytest.approx(numbers(scale(a, most / l2_norm(a))), rel=1e-6)


@given(start=STATES, change=STATES.filter(lambda a: l2_norm(a) > 0), most=st.floats(0.1, 1e4))
def test_a_clipped_change_is_what_flowers_clients_send(start: State, change: State, most: float):
    """Flower's clip what was trained against what was received, and say when they did.

    Arrays without dimensions are given one here: Flower 1.41 leaves them as long as they were.
    """

    def arrays(state: State) -> list[Any]:
        return [tensor.double().reshape(-1).numpy() for tensor in state.values()]

    clipped, within = clip_norm(change, most)
    fixed, adaptive = arrays(add(start, change)), arrays(add(start, change))
    compute_clip_model_update(fixed, arrays(start), most)
    assert compute_adaptive_clip_model_update(adaptive, arrays(start), most) == (not within)
    for sent in (fixed, adaptive):
        assert np.allclose(
            np.concatenate(sent), np.concatenate(arrays(add(start, clipped))), rtol=1e-6, atol=1e-3
        )


def test_scalars_are_counted_in_all_shapes():
    assert count({"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(0, 5)}) == 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_makes_a_state_not_finite(bad: float):
    assert is_finite({"a": torch.zeros(3)})
    assert not is_finite({"a": torch.zeros(3), "b": torch.tensor([0.0, bad])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_large_numbers_are_finite_though_their_sum_is_not(dtype: torch.dtype):
    large = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    assert not torch.isfinite(large.sum())
    assert is_finite({"a": large, "b": -large})
    assert not is_finite({"a": torch.cat([large, -large, large.new_tensor([float("inf")])])})


@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), max_size=3), max_size=4),
    st.sampled_from([None, math.nan, math.inf, -math.inf, 3.5, -3.5]),
)
def test_one_scalar_that_is_too_large_is_found_in_any_tensor(
    numbers: list[list[float]], odd: float | None
):
    state = {str(place): torch.tensor(each) for place, each in enumerate(numbers)}
    inside = all(abs(number) <= 3 for each in numbers for number in each)
    assert is_within(state, 3.0) == inside
    if odd is not None:
        assert not is_within({"odd": torch.tensor([0.0, odd]), **state}, 3.0)
        assert not is_within({**state, "odd": torch.tensor(odd)}, 3.0)
