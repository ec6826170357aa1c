"""Reconstructs images within the span of their patches, by least squares on all gradients.

The rows of the gradient of the patch embedding, Σ δᵢ·xᵢᵀ, span the patches xᵢ if these are few
(`attacks.span`). So a patch has only as many unknown numbers as the span has dimensions. The
singular vectors of this gradient are ordered by how much they contribute to the patches. So the
search begins with a few singular vectors, and continues with more:

    images = coefficients (B, N, k) · first k singular vectors (k, D),    k = 4, 6, 8, ... r

Pixels outside of [-1, 1] are residuals, too. The least squares have local minima, in which some
patches are wrong. So the search tries moves: one patch becomes equal to another patch, or two
patches change places. The search is repeated from several random points, until the least sum of
squares is small, or is reached twice.

Letters in shapes: B images, N patches, D entries of a patch, r dimensions of the span, k dimensions
in use, M moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from fl_vitlora.attacks.inversion.distances import residuals
from fl_vitlora.attacks.inversion.least_squares import Steps, levenberg_marquardt
from fl_vitlora.attacks.inversion.simulated import Simulated
from fl_vitlora.attacks.span import row_space
from fl_vitlora.encryption.image_blocks import from_blocks
from fl_vitlora.models.reading import WEIGHT

OUTSIDE = 0.05  # weight of pixels outside of [-1, 1]
COARSE, COARSE_STEPS = 4, 30  # dimensions at the beginning, and steps from every random point
DEVIATION = 0.3  # standard deviation of the coefficients of a random point
ENOUGH = 0.02  # with this sum of squares for each tensor, no other random point is tried
SLOW = 0.01  # a step is slow if it lowers the sum of squares by a smaller share
POINTS, AGAIN = 6, 1.05  # most random points; two sums of squares within this factor are the same
ROUNDS, BEST, MOVE_STEPS = 3, 2, 6  # rounds of moves, moves that are followed, and steps after each
MOVES, TOGETHER = 720, 60  # most moves that are tried in a round; moves computed together
FINER = ((6, 10), (8, 8), (10, 6), (12, 6))  # pairs of dimensions and steps; all dimensions follow
UNKNOWNS = 2048  # most unknowns; with more, the last dimensions of the span are left out


@dataclass(frozen=True, kw_only=True)
class SpanProblem:
    """The problem of least squares whose solution is the images.

    Attributes:
        model: The model of the round.
        target: The observed gradient.
        exact: True if the tensors of the gradient must agree in length and direction; False if only
            their directions must agree.
        classes: The labels, int64 (B,).
        size: The height and width of an image in pixels.
        patch_size: The side of a patch in pixels.
    """

    model: Simulated
    target: Mapping[str, Tensor] = field(repr=False)
    exact: bool
    classes: Tensor
    size: tuple[int, int]
    patch_size: int

    @property
    def patches(self) -> int:
        """Returns the number B·N of patches of all images."""
        height, width = self.size
        return len(self.classes) * (height // self.patch_size) * (width // self.patch_size)

    def images(self, coefficients: Tensor, basis: Tensor) -> Tensor:
        """Returns the images, (B, C, H, W), for coefficients (B·N·k,) and a basis (D, k)."""
        rows = coefficients.reshape(len(self.classes), -1, basis.shape[1]) @ basis.T
        return from_blocks(rows, *self.size, self.patch_size)

    def residuals(self, coefficients: Tensor, basis: Tensor) -> Tensor:
        """Returns the residuals of the gradient, and those of pixels outside of [-1, 1]."""
        images = self.images(coefficients, basis)
        gradient = self.model.gradient(images, self.classes)
        beyond = images - images.clamp(-1, 1)
        return torch.cat([residuals(gradient, self.target, self.exact), OUTSIDE * beyond.flatten()])

    def solve(
        self, start: Tensor, basis: Tensor, steps: int, allowed: Steps
    ) -> tuple[Tensor, float]:
        """Returns the coefficients that `levenberg_marquardt` finds, and their sum of squares."""
        function = partial(self.residuals, basis=basis)
        return levenberg_marquardt(function, start, steps=steps, slow=SLOW, allowed=allowed)


def reconstruct(
    problem: SpanProblem, steps: int, points: int = POINTS, allowed: Steps | None = None
) -> tuple[Tensor, float]:
    """Reconstructs images from a gradient.

    Args:
        problem: The gradient that the images must have, and the model that computes gradients.
        steps: The largest number of steps with all dimensions of the span. With 0 the search ends
            with the first `COARSE` dimensions.
        points: The largest number of random points from which the search begins.
        allowed: The steps that may be taken in all; the search ends if no step is left. None allows
            any number.

    Returns:
        A pair: the images, in [-1, 1], (B, C, H, W), and the remaining sum of squared residuals.
    """
    whole = row_space(problem.target[WEIGHT].flatten(1)).to(problem.target[WEIGHT].dtype)
    basis = whole[:, : max(1, UNKNOWNS // problem.patches)]
    allowed = allowed or Steps()
    coefficients, cost = coarse(problem, basis[:, :COARSE], points, allowed)
    finer = [(k, n) for k, n in FINER if steps and k < basis.shape[1]]
    for dimensions, most in [*finer, (basis.shape[1], steps)]:
        rows = coefficients.reshape(problem.patches, -1)
        missing = rows.new_zeros(len(rows), dimensions - rows.shape[1])
        begun = torch.cat([rows, missing], dim=1).flatten()
        coefficients, cost = problem.solve(begun, basis[:, :dimensions], most, allowed)
    return problem.images(coefficients, basis).clamp(-1, 1), cost


def coarse(
    problem: SpanProblem, basis: Tensor, points: int, allowed: Steps
) -> tuple[Tensor, float]:
    """Searches from random points, with few dimensions.

    The search ends when the least cost is found twice, or is small.

    Args:
        problem: The gradient that the images must have, and the model that computes gradients.
        basis: The dimensions of the span in which the search looks for patches, (D, k).
        points: The largest number of random points.
        allowed: The steps that may be taken.

    Returns:
        A pair: the best coefficients, (B·N·k,), and their sum of squares.
    """
    best, least = basis.new_zeros(problem.patches * basis.shape[1]), float("inf")
    for number in range(points):
        draw = torch.Generator().manual_seed(number)
        point = DEVIATION * torch.randn(len(best), generator=draw).to(basis)
        point, cost = problem.solve(point, basis, COARSE_STEPS, allowed)
        point, cost = moved(problem, basis, (point, cost), draw, allowed)
        again = least / AGAIN < cost < least * AGAIN
        if cost < least:
            best, least = point, cost
        if again or least < ENOUGH * len(problem.target) or allowed.over:
            break
    return best, least


def moved(
    problem: SpanProblem,
    basis: Tensor,
    found: tuple[Tensor, float],
    draw: torch.Generator,
    allowed: Steps,
) -> tuple[Tensor, float]:
    """Leaves local minima: makes patches equal or swaps them, and searches from the results.

    Args:
        problem: The gradient that the images must have, and the model that computes gradients.
        basis: The dimensions of the span in which the search looks for patches, (D, k).
        found: The coefficients with which the search begins, and their sum of squares.
        draw: The random generator that chooses the moves if there are more than `MOVES`.
        allowed: The steps that may be taken. Every `TOGETHER` moves count as one step.

    Returns:
        A pair: coefficients that are at least as good as `found`, and their sum of squares.
    """

    def cost_of(coefficients: Tensor) -> Tensor:
        return problem.residuals(coefficients, basis).square().sum()

    for _ in range(ROUNDS):
        rows = found[0].reshape(problem.patches, -1)
        points = neighbours(rows, draw).flatten(1)
        groups = [some for some in torch.split(points, TOGETHER) if allowed.take()]
        if allowed.over:
            break
        costs = torch.cat([vmap(cost_of)(some) for some in groups])
        nearest = points[costs.argsort(stable=True)[:BEST]]
        tried = [problem.solve(point, basis, MOVE_STEPS, allowed) for point in nearest]
        best = min(tried, key=lambda pair: pair[1])
        if best[1] * AGAIN >= found[1]:
            break
        found = best
    return found


def neighbours(rows: Tensor, draw: torch.Generator) -> Tensor:
    """Returns the patches after each move, (M, n, k). A move copies a patch or swaps two patches.

    Args:
        rows: The coefficients of n patches, (n, k).
        draw: The random generator that chooses the moves if there are more than `MOVES`.

    Example:
        >>> neighbours(torch.tensor([[1], [2]]), torch.Generator()).flatten(1).tolist()
        [[2, 2], [2, 1], [1, 1]]
    """
    count = len(rows)
    found, places = list[Tensor](), torch.arange(count)
    for first in range(count):
        for second in range(count):
            if first != second:
                copied = places.clone()
                copied[first] = second
                found.append(copied)
            if first < second:
                swapped = places.clone()
                swapped[[first, second]] = places[[second, first]]
                found.append(swapped)
    order = torch.stack(found)
    if len(order) > MOVES:
        order = order[torch.randperm(len(order), generator=draw)[:MOVES]]
    return rows[order]
