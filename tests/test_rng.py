"""Derived generators: the same path gives the same draws, another path others, on every machine."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.rng import derive_seed, generator, seeded

PATHS = st.lists(st.integers(0, 9) | st.text("ab", min_size=1, max_size=2), max_size=3)


@given(seed=st.integers(0, 2**64), path=PATHS)
def test_a_seed_fits_in_63_bits(seed: int, path: list[str | int]):
    assert 0 <= derive_seed(seed, *path) < 2**63


@given(a=PATHS, b=PATHS)
def test_other_paths_have_other_seeds(a: list[str | int], b: list[str | int]):
    same = [str(part) for part in a] == [str(part) for part in b]
    assert (derive_seed(0, *a) == derive_seed(0, *b)) == same


def test_the_derivation_never_changes():
    """Otherwise old runs could not be repeated. By hand: printf 0/sampling/1 | b2sum -l 64."""
    assert derive_seed(0, "sampling", 1) == 0x0B522C4D1EBD1469 >> 1


def test_draws_depend_on_nothing_that_was_drawn_before():
    torch.manual_seed(1)
    first = torch.rand(3, generator=generator(7, "batches", 2, 5))
    torch.rand(100)
    generator(7, "batches", 2, 4)
    assert torch.equal(first, torch.rand(3, generator=generator(7, "batches", 2, 5)))


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(10, generator=generator(0, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_neighbouring_seeds_and_rounds_give_unlike_orders():
    orders = {
        tuple(torch.randperm(20, generator=generator(seed, "sampling", server_round)).tolist())
        for seed in range(5)
        for server_round in range(5)
    }
    assert len(orders) == 25


@given(seed=st.integers(0, 2**63 - 1))
def test_everybodys_generators_draw_by_the_seed_and_then_go_on_where_they_were(seed: int):
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.normal())

    random.seed(7)
    np.random.seed(7)
    expected = [draw(), draw()]
    random.seed(7)
    np.random.seed(7)
    found = [draw()]
    with seeded(seed):
        first = draw()
    with seeded(seed):
        assert draw() == first
    assert [*found, draw()] == expected


def test_everybodys_generators_are_put_back_after_an_error_too():
    state = random.getstate()
    with pytest.raises(RuntimeError), seeded(3):
        raise RuntimeError
    assert random.getstate() == state
