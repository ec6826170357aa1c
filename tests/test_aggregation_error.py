"""How far an aggregation is from the mean of the clients' products, by numbers done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.lowrank import A, B, R, relative_error, stack, trained
from fl_vitlora.rng import generator
from fl_vitlora.state import State
from fl_vitlora.strategy import Update, averaged, shares


def numbers(a: float, b: float) -> State:
    """A pair of 1 by 1 matrices beside a head."""
    return {
        "x" + A: torch.full((1, 1), float(a)),
        "x" + B: torch.full((1, 1), float(b)),
        "head": torch.ones(3),
    }


def update(client: int, delta: State, samples: int = 1, **given: Any) -> Update:
    return Update(client=client, samples=samples, loss=0.0, delta=delta, **given)


def random_round(seed: int, clients: int = 3) -> tuple[State, list[Update]]:
    """A model of two pairs of rank 2, and clients of unequal weights and ranks that trained it."""
    chance = generator(seed, "test rounds")
    shapes = {"x" + A: (2, 5), "x" + B: (4, 2), "y" + A: (2, 3), "y" + B: (3, 2), "head": (3,)}

    def draw() -> State:
        return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}

    return draw(), [update(k, draw(), k + 1, rank=1 + k % 2) for k in range(clients)]


def test_the_mean_of_factors_is_not_the_mean_of_products():
    """Both clients have a product of 1, and factors of opposite signs whose mean is 0."""
    model, updates = numbers(0, 0), [update(0, numbers(1, 1)), update(1, numbers(-1, -1))]
    assert relative_error(model, updates, averaged(model, updates), {}) == 1.0


def test_weights_count():
    """The mean of the products 1 and 4 with weights 3 and 1 is 7/4; that of factors is (5/4)²."""
    model, updates = numbers(0, 0), [update(0, numbers(1, 1), 3), update(1, numbers(2, 2), 1)]
    found = relative_error(model, updates, averaged(model, updates), {})
    assert found == pytest.approx((7 / 4 - 25 / 16) / (7 / 4))


@given(seed=st.integers(0, 99))
def test_one_client_of_the_models_rank_is_aggregated_exactly(seed: int):
    model, updates = random_round(seed, clients=2)
    alone = updates[1:]
    assert relative_error(model, alone, averaged(model, alone), {}) == pytest.approx(0, abs=1e-6)


@given(seed=st.integers(0, 99))
def test_averaging_is_exact_where_one_factor_rests(seed: int):
    model, updates = random_round(seed)
    for one in updates:
        for name in [name for name in one.delta if name.endswith(A)]:
            del one.delta[name]
    full = [update(u.client, u.delta, u.samples) for u in updates]
    assert relative_error(model, full, averaged(model, full), {}) == pytest.approx(0, abs=1e-6)


@given(seed=st.integers(0, 99))
def test_what_is_merged_into_frozen_weights_counts_as_aggregated(seed: int):
    """All clients' pairs merged, and the model's own set to zero."""
    model, updates = random_round(seed)
    clients, merged = [trained(model, one) for one in updates], {}
    for path in ("x", "y"):
        merged[path + ".merged_A"], merged[path + ".merged_B"] = stack(
            shares(updates), clients, path
        )
    empty = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    assert relative_error(model, updates, empty, merged) == pytest.approx(0, abs=1e-6)
    assert relative_error(model, updates, model, {}) == pytest.approx(1)  # nothing has moved


def test_where_nothing_can_be_compared_nothing_is_told():
    model, updates = numbers(1, 1), [update(0, numbers(1, 1))]
    product_of_three = {**model, "x" + R: torch.ones(1, 1)}
    assert relative_error(product_of_three, updates, product_of_three, {}) is None
    for absent in (A, B):  # it stays with the clients
        left = {name: tensor for name, tensor in model.items() if name != "x" + absent}
        seen = [update(0, {name: updates[0].delta[name] for name in left})]
        assert relative_error(left, seen, averaged(left, seen), {}) is None
    summed = [update(-1, numbers(1, 1), members=5)]
    assert relative_error(model, summed, averaged(model, summed), {}) is None
    still = [update(0, numbers(0, 0))]
    assert relative_error(model, still, averaged(model, still), {}) is None
