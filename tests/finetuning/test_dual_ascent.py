"""Dual ascent: prices rise with violations, and stay in their range."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.dual_ascent import ascended


def test_a_lasting_violation_ends_at_the_price_of_its_slack():
    """The fixed point of λ + η·(c - λ/ρ) is λ = ρ·c."""
    duals, violations = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, -0.5]).double()
    for _ in range(2000):
        duals = ascended(duals, violations, 0.1, 4.0, 10.0)
    assert torch.allclose(duals, torch.tensor([2.0, 0.0]).double(), atol=1e-9)


def test_no_price_exceeds_the_limit():
    assert ascended(torch.zeros(1), torch.tensor([50.0]), 1.0, 1e9, 10.0).tolist() == [10.0]


def test_with_a_rate_of_zero_nothing_changes():
    duals = torch.tensor([0.25, 3.0])
    assert torch.equal(ascended(duals, torch.tensor([1.0, -1.0]), 0.0, 1.0, 10.0), duals)
