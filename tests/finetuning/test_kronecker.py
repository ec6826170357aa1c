"""Products with cores are products with the matrix that the cores stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.kronecker import balanced_factors, times_ring


def drawn(factors: Sequence[int], rank: int, *leading: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*leading, size, size, rank, rank, dtype=torch.float64) for size in factors]


def by_traces(cores: Sequence[Tensor]) -> Tensor:
    """Forms the matrix of a tensor ring, entry by entry, as the definition says."""
    digits = list(itertools.product(*(range(len(core)) for core in cores)))
    formed = torch.empty(len(digits), len(digits), dtype=torch.float64)
    for (i, row), (j, column) in itertools.product(enumerate(digits), repeat=2):
        path = [core[r, c] for core, r, c in zip(cores, row, column, strict=True)]
        formed[i, j] = torch.linalg.multi_dot([*path, torch.eye(len(path[0])).double()]).trace()
    return formed


def test_a_product_with_a_ring_is_the_trace_formula():
    cores = drawn((2, 3, 4), 2)
    product = times_ring(torch.eye(24, dtype=torch.float64), cores)
    assert torch.allclose(product, by_traces(cores), atol=1e-13, rtol=1e-13)


def test_a_ring_of_rank_one_is_a_kronecker_product():
    cores = drawn((4, 4, 6), 1)
    one, two, three = (core[..., 0, 0] for core in cores)
    rows = torch.randn(5, 96, dtype=torch.float64)
    expected = rows @ torch.kron(torch.kron(one, two), three)
    assert torch.allclose(times_ring(rows, cores), expected, atol=1e-12, rtol=1e-12)


@given(rank=st.integers(1, 3), leading=st.integers(1, 3), shared=st.booleans())
def test_stacked_cores_give_the_products_of_each(*, rank: int, leading: int, shared: bool):
    stacked = drawn((2, 3), rank, leading)
    rows = torch.randn(leading, 4, 6, dtype=torch.float64)
    rows = rows[0] if shared else rows
    product = times_ring(rows, stacked)
    for k in range(leading):
        own = times_ring(rows if shared else rows[k], [core[k] for core in stacked])
        assert torch.allclose(product[k], own, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize(
    ("size", "factors"),
    [(96, (4, 4, 6)), (384, (6, 8, 8)), (768, (8, 8, 12)), (3072, (12, 16, 16)), (4, (2, 2))],
)
def test_the_widths_of_vits_have_balanced_factors(size: int, factors: tuple[int, ...]):
    assert balanced_factors(size) == factors


@given(factors=st.lists(st.integers(2, 12), min_size=2, max_size=3))
def test_factors_multiply_to_the_size_and_none_have_a_smaller_sum(factors: list[int]):
    found = balanced_factors(math.prod(factors))
    assert math.prod(found) == math.prod(factors)
    assert sum(found) <= sum(factors)
    assert min(found) > 1


@pytest.mark.parametrize("prime", [2, 3, 97])
def test_a_prime_width_is_refused(prime: int):
    with pytest.raises(UserError, match=f"a layer with {prime} inputs has no Kronecker factors"):
        balanced_factors(prime)
