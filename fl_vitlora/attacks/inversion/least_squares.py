"""The method of Levenberg and Marquardt: least squares of a function that is not linear.

A step s solves (JᵀJ + λ·D)·s = -Jᵀr, where r are the residuals, J their derivatives, and D the
diagonal of JᵀJ. λ falls after a step that does what the linear model predicts. λ rises after a step
that would make the residuals larger; such a step is not taken.

Source: Marquardt, SIAM 1963. The rule for λ comes from Nielsen, report IMM-REP-1999-05, DTU.

Letters in shapes: m residuals, n unknowns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from fl_vitlora.attacks.clock import UNLIMITED, Clock

Residuals = Callable[[Tensor], Tensor]
START, LEAST_RATIO, TRIALS, PATIENCE = 1e-2, 1e-4, 8, 2
FLOOR = 1e-3  # smallest entry of D, as a share of its largest entry


@dataclass
class Steps:
    """The steps that a series of searches may take, and the clock of these searches.

    The number of steps does not depend on the speed of the machine. Therefore a search that is
    repeated ends at the same point.

    Attributes:
        left: The number of steps that are left.
        clock: The clock that is asked before every step. The clock ends a search by raising an
            error.
    """

    left: float = math.inf
    clock: Clock = UNLIMITED

    def take(self) -> bool:
        """Takes a step if one is left.

        Returns:
            True if a step was left.

        Raises:
            OutOfTimeError: If the time budget of the clock is spent.

        Example:
            >>> steps = Steps(left=1)
            >>> steps.take(), steps.take()
            (True, False)
        """
        self.clock.check()
        if self.over:
            return False
        self.left -= 1
        return True

    @property
    def over(self) -> bool:
        """Returns True if no step is left."""
        return self.left < 1


def levenberg_marquardt(
    residuals: Residuals,
    start: Tensor,
    *,
    steps: int,
    enough: float = 1e-8,
    slow: float = 0.0,
    columns: int = 64,
    allowed: Steps | None = None,
) -> tuple[Tensor, float]:
    """Minimises the sum of the squares of residuals.

    Args:
        residuals: A differentiable function from (n,) to (m,).
        start: The point at which the search begins, (n,).
        steps: The largest number of steps.
        enough: The sum of squares at which the search ends.
        slow: The search ends after `PATIENCE` steps in a row that lower the sum of squares by less
            than this share.
        columns: The number of columns of J that are computed together.
        allowed: The steps that may be taken. A step of n unknowns counts n / `columns` times,
            rounded up. The search ends if no step is left. None allows any number of steps.

    Returns:
        A pair: the point that was found, and its sum of squares.

    Example:
        >>> circle = lambda x: torch.stack([x @ x - 1, x[0] - x[1]])
        >>> point, rest = levenberg_marquardt(circle, torch.tensor([2.0, 0.5]), steps=30)
        >>> [round(number, 3) for number in point.tolist()]
        [0.707, 0.707]
    """
    point, current = start, residuals(start)
    cost, damping, patience = float(current @ current), START, PATIENCE
    allowed = allowed or Steps()
    for _ in range(steps):
        if cost <= enough or not patience:
            break
        jacobian = derivatives(residuals, point, columns, allowed)
        if jacobian is None:
            break
        better = _better(residuals, point, current, jacobian, damping)
        if better is None:
            break
        before = cost
        point, current, damping = better
        cost = float(current @ current)
        patience = patience - 1 if before - cost < slow * before else PATIENCE
    return point, cost


def _better(
    residuals: Residuals, point: Tensor, current: Tensor, jacobian: Tensor, damping: float
) -> tuple[Tensor, Tensor, float] | None:
    """Returns a better point, its residuals and the next λ; None if no step is better."""
    square, slope = jacobian.T @ jacobian, jacobian.T @ current
    diagonal = square.diagonal().clamp(min=FLOOR * float(square.diagonal().max()))
    cost, growth = float(current @ current), 2.0
    for _ in range(TRIALS):
        step = torch.linalg.solve(square + damping * torch.diag(diagonal), -slope)
        there = residuals(point + step)
        promised = float(step @ (damping * diagonal * step - slope))
        ratio = (cost - float(there @ there)) / promised
        if ratio > LEAST_RATIO:
            return point + step, there, damping * max(1 / 5, 1 - (2 * ratio - 1) ** 3)
        damping, growth = damping * growth, growth * 2
    return None


def derivatives(
    residuals: Residuals, point: Tensor, columns: int, allowed: Steps | None = None
) -> Tensor | None:
    """Returns the derivatives J of residuals at a point, (m, n).

    Args:
        residuals: A differentiable function from (n,) to (m,).
        point: The point, (n,).
        columns: The number of columns of J that are computed together.
        allowed: The steps that may be taken; each group of columns takes one step. If no step is
            left, the result is None.
    """
    allowed = allowed or Steps()

    def along(direction: Tensor) -> Tensor:
        found: Tensor = jvp(residuals, (point,), (direction,))[1]
        return found

    found = list[Tensor]()
    for some in torch.split(torch.eye(len(point), dtype=point.dtype), columns):
        if not allowed.take():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # PyTorch itself uses a function that it deprecates
            found.append(vmap(along)(some))
    return torch.cat(found).T
