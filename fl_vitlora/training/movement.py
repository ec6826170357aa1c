"""Bounds how far honest training can move the entries of tensors, whatever the images are.

With learning rate η an entry moves in the steps t = 1..T of a round by at most η·Σₜ bₜ. Each
optimiser states its bₜ (`Optimizer.bound`):

adam, adamw   |m̂ₜ|/√v̂ₜ ≤ bₜ = (1-β₁)/(1-β₁ᵗ) · √((1-β₂ᵗ)/(1-β₂)) · √(Σⱼ₍ⱼ<ₜ₎ (β₁²/β₂)ʲ)
adagrad       |g|/√(Σg²) ≤ bₜ = 1
sgd           |vₜ| ≤ bₜ = C·(1-μᵗ)/(1-μ), if gradients are clipped to the norm C

The bound of Adam is the inequality of Cauchy and Schwarz for m = (1-β₁)·Σ β₁ᵗ⁻ˢ·gₛ and
v = (1-β₂)·Σ β₂ᵗ⁻ˢ·gₛ². Gradients gₛ in proportion to (β₁/β₂)ᵗ⁻ˢ reach the bound. Therefore no
smaller bound is possible. For sgd, vₜ is the sum of gradients with the momentum μ. Every round
begins with a new optimiser. A mean or a median over clients moves an entry no farther than the
client that moves this entry the farthest. Therefore the bounds of rounds add up. With the number c
that `Strategy.step_bound` returns, an entry w_r in round r has the bound

    |w_r - w_1| ≤ Dᵣ = c · (Σₜ bₜ) · Σ_(s<r) η_s
"""

from __future__ import annotations

import math

from torch import Tensor

from fl_vitlora.config import TrainingConfig
from fl_vitlora.training.local import scheduled_rate
from fl_vitlora.training.optimizers import optimizer_of

# Rounding: float32 has 24 bits. A sum of K numbers has a relative error of at most K·2⁻²⁴, so
# OF_SUMS covers means of 16,000 clients. OF_STEP covers the rounding of one step of a client.
OF_SUMS, OF_STEP = 2.0**-10, 2.0**-22
# Two processors may round the start differently, by at most this share of the largest entry.
OF_START = 2.0**-18


def step_sum(config: TrainingConfig, steps: int) -> float | None:
    """Returns Σₜ bₜ: the largest move of an entry in a round, as a multiple of its learning rate.

    Args:
        config: The hyper-parameters of local training.
        steps: The number T of steps in a round.

    Returns:
        The sum, or None if no bound is known. No bound is known for other optimisers, for weight
        decay, and for sgd without clipped gradients.

    Example:
        >>> step_sum(TrainingConfig(optimizer="adagrad"), 10)
        10.0
        >>> step_sum(TrainingConfig(optimizer="sgd", momentum=0.5, clip_norm=2.0), 2)
        5.0
        >>> step_sum(TrainingConfig(optimizer="sgd"), 10) is None
        True
    """
    bound = optimizer_of(config.optimizer).bound
    moves = [bound(config, step) for step in range(1, steps + 1)]
    known = [move for move in moves if move is not None]
    return math.fsum(known) if len(known) == steps else None


def reach(config: TrainingConfig, rounds: int, done: int, steps: int, factor: float) -> float:
    """Returns D: the largest possible distance between an entry and its start.

    D is for a tensor whose learning rate is the rate of the round, without a factor.

    Args:
        config: The hyper-parameters of local training, for which `step_sum` knows a bound.
        rounds: The number of rounds of the run.
        done: The number of rounds that were done.
        steps: The largest number of steps that a client takes in a round.
        factor: The number c that `Strategy.step_bound` returns.

    Raises:
        ValueError: If no bound is known.

    Example:
        >>> flat = TrainingConfig(optimizer="adagrad", learning_rate=0.5, schedule="constant")
        >>> reach(flat, rounds=9, done=2, steps=3, factor=1.0)
        3.0
    """
    farthest = step_sum(config, steps)
    if farthest is None:
        raise ValueError(f"no bound is known for the optimiser {config.optimizer}")
    rates = (scheduled_rate(config, number, rounds) for number in range(1, done + 1))
    return factor * farthest * math.fsum(rates)


def excess(tensor: Tensor, start: Tensor, distance: float, steps: int) -> tuple[float, float]:
    """Returns how far the worst entry of a tensor is from its start, and how far it may be.

    Args:
        tensor: The received tensor.
        start: The same tensor before the first round.
        distance: The largest distance of an entry from its start, before rounding. If `distance` is
            0, the tensors must be equal up to the rounding of another processor. If `start` is
            zero, `tensor` must then be zero.
        steps: The number of all steps so far, for the rounding of float32.

    Returns:
        A pair. First, the distance between the start and the entry that exceeds its allowed
        distance the most; 0 if no entry exceeds its allowed distance. Second, the allowed distance
        of this entry. The distance of NaN is infinite.

    Example:
        >>> import torch
        >>> excess(torch.tensor([0.0, 3.0]), torch.zeros(2), 1.0, 0)[0]
        3.0
        >>> excess(torch.tensor([0.0, 1.0]), torch.zeros(2), 1.0, 0)[0]
        0.0
    """
    if not tensor.numel():
        return 0.0, distance
    first = start.double().abs()
    away = (tensor.double() - start.double()).abs().nan_to_num(nan=math.inf)
    allowed = distance * (1 + OF_SUMS) + OF_START * first.max()
    allowed = allowed + OF_STEP * steps * (first + distance)
    worst = int((away - allowed).argmax())
    found, limit = float(away.flatten()[worst]), float(allowed.flatten()[worst])
    return (found if found > limit else 0.0), limit
