"""Detects on which images clients have trained, from models and the sums of updates alone.

Under secure aggregation the server has the model of each round and the mean Δ of all updates. Two
measures of a candidate image follow from these models and means:

* the fall of the loss of the image along Δ, in each round, as a share of this loss. Δ is roughly a
  sum of -∇ℓ over all training images, and the gradients of different images are almost at right
  angles in a model with many weights. So the loss of a training image falls further along Δ. If
  the loss is already small, the gradient is small, too. Therefore the fall is divided by the loss;
* the logit of the image after the last update, log(q / (1 - q)), where q is the probability of its
  class. Training images are learnt better than others.

Some classes are harder than others. Therefore each measure is compared with that of the other
candidates of the same class, in standard deviations. The score is the mean over all rounds of the
first measure, plus the second measure. Unlike `membership_rounds`, this attack does not need to
know which client has sent which update, and does not say which client has the image.

Source: Li, Li & Ribeiro, "Effective passive membership inference attacks in federated learning
against overparameterized models", ICLR 2023 (gradients almost at right angles); Carlini et al.,
S&P 2022 (logits).

Letters in shapes: M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.membership_figures import FIGURES, membership_figures
from fl_vitlora.attacks.membership_rounds import (
    LEAST_LOSS,
    LEAST_SPREAD,
    ROUNDS,
    STEP,
    lacks_losses,
    logits_of,
    losses_by,
    moved,
)
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import InformedServerView
from fl_vitlora.federation.observer import Sight
from fl_vitlora.state import State, mean


@dataclass(frozen=True, kw_only=True)
class MembershipSums(Attack[InformedServerView, Tensor]):
    """The attack. A guess is a score of each candidate, (M,); members should have larger scores."""

    adversaries = (InformedServerView,)
    goal = "On which images clients have trained, from models and the sums of updates."
    figures = FIGURES

    def lacks(self, view: InformedServerView) -> str:
        """Returns why the server cannot compute the losses of candidates; empty if it can."""
        return view.lacks_updates() or lacks_losses(view)

    def guess(self, view: InformedServerView) -> Tensor:
        """Returns the score of each candidate, float64 (M,)."""
        assert view.model is not None
        losses = losses_by(view.model, view.images, view.labels, view.clock.check)
        recorded = [sight for sight in view.rounds if sight.updates]
        sums = [mean_update(sight) for sight in recorded]
        falls = []
        for sight, delta in list(zip(recorded, sums, strict=True))[:: -(-len(recorded) // ROUNDS)]:
            before = losses(sight.model).clamp(min=LEAST_LOSS)
            fall = (before - losses(moved(sight.model, delta, STEP))) / before
            falls.append(within_class(fall, view.labels))
        last = logits_of(losses(moved(recorded[-1].model, sums[-1], 1.0)))
        return torch.stack(falls).mean(dim=0) + within_class(last, view.labels)

    def score(self, guess: Tensor, truth: Truth) -> Sequence[Figure]:
        """Returns the area under the curve, and the rates at small false positive rates."""
        return membership_figures(guess, truth.members())


def mean_update(sight: Sight) -> State:
    """Returns the mean of the updates of a round, weighted by their numbers of images."""
    return mean([u.delta for u in sight.updates], [u.samples for u in sight.updates])


def within_class(values: Tensor, labels: Tensor) -> Tensor:
    """Returns how far each value is from the mean of its class, in standard deviations.

    Args:
        values: A number for each candidate, (M,).
        labels: The labels of the candidates, int64 (M,).

    Returns:
        The numbers, float64 (M,). They are 0 in a class whose values are all equal.

    Example:
        >>> within_class(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1])).tolist()
        [-1.0, 1.0, 0.0]
    """
    found = values.double().clone()
    for label in set(labels.tolist()):
        own = labels == label
        away = found[own] - found[own].mean()
        spread = away.square().mean().sqrt()
        found[own] = away / spread if spread > LEAST_SPREAD else torch.zeros_like(away)
    return found
