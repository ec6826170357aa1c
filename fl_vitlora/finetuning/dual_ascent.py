"""Dual ascent: the dual of a constraint rises while the constraint is violated.

For L constraints c ≤ 0 and their L duals λ ≥ 0, a step of size η is

    λ ← min(λ_max, [λ + η·(c - λ / ρ)]₊)

The amount λ / ρ is the slack of a "resilient" constraint: the larger the dual λ, the further the
constraint may be violated.

Source: The resilient form comes from Hounie, Ribeiro and Chamon, arXiv 2306.02426.
"""

from __future__ import annotations

from torch import Tensor


def ascended(
    duals: Tensor, violations: Tensor, rate: float, resilience: float, limit: float
) -> Tensor:
    """Returns the duals after one step of dual ascent.

    Args:
        duals: The duals λ, (L,).
        violations: The values c of the constraints, (L,); a positive value is a violation.
        rate: The size η of the step.
        resilience: The weight ρ of the slacks.
        limit: The largest dual λ_max.

    Example:
        >>> import torch
        >>> duals, found = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, -1.0])
        >>> ascended(duals, found, 0.5, 4.0, 10.0)
        tensor([1.0000, 0.8750, 0.0000])
    """
    step = violations - duals / resilience
    return (duals + rate * step).clamp(min=0, max=limit)
