"""Least squares find the zero of residuals, and their derivatives are those of autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.attacks.inversion.least_squares import Steps, derivatives, levenberg_marquardt


def bent(x: Tensor) -> Tensor:
    """Rosenbrock's valley, whose only zero is (1, 1)."""
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def test_the_end_of_a_bent_valley_is_found():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    point, cost = levenberg_marquardt(bent, start, steps=60, enough=1e-20)
    assert cost < 1e-20
    assert torch.allclose(point, torch.ones(2, dtype=torch.float64))


def test_the_cost_never_rises():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    costs = [levenberg_marquardt(bent, start, steps=steps)[1] for steps in range(8)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == float(bent(start) @ bent(start))


def test_the_derivatives_are_the_same_however_many_columns_are_computed_together():
    draw = torch.Generator().manual_seed(0)
    point = torch.randn(5, generator=draw, dtype=torch.float64)
    weight = torch.randn(7, 5, generator=draw, dtype=torch.float64)

    def curve(x: Tensor) -> Tensor:
        return (weight @ x).sin()

    expected = torch.autograd.functional.jacobian(curve, point)
    for columns in (1, 2, 64):
        found = derivatives(curve, point, columns)
        assert found is not None
        assert torch.allclose(found, expected)


def test_a_search_without_steps_returns_its_start():
    start = torch.tensor([3.0, 4.0])
    point, _ = levenberg_marquardt(bent, start, steps=9, allowed=Steps(left=0))
    assert torch.equal(point, start)


def test_a_search_that_has_become_slow_ends_early():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    _, early = levenberg_marquardt(bent, start, steps=60, enough=0, slow=1.0)
    _, late = levenberg_marquardt(bent, start, steps=60, enough=0, slow=0.0)
    assert late < early < float(bent(start) @ bent(start))
