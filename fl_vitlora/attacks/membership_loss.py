"""Tells on which images a client has trained: their loss under the final model is smaller.

The adversary asks the model about candidate images whose labels it knows, and takes those of small
loss for members. Most of such attacks' power lies in the few images of which they are certain. So
the figures are the area under the curve, and the true positive rate at small false positive rates.

Source: Yeom et al., CSF 2018 (loss as the score); Carlini et al., S&P 2022 (true positive rate at
small false positive rates).

M candidates, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import UserView

FALSE_POSITIVES = (0.01, 0.001)
FIGURES = (
    "area under the curve",
    *(f"true positives at {100 * rate:g} % false ones" for rate in FALSE_POSITIVES),
)
FEWEST = 200  # candidates; with fewer, chance alone finds many


@dataclass(frozen=True, kw_only=True)
class MembershipLoss(Attack[UserView, Tensor]):
    """The attack. Its guess is a score of each candidate, (M,); members should have larger ones."""

    adversaries = (UserView,)
    goal = "On which images a client has trained, from the loss of the final model."
    figures = FIGURES

    def lacks(self, view: UserView) -> str:
        """Returns why the adversary cannot compute outputs of the final model; empty if it can."""
        if not len(view.labels):
            return "clients keep parts of the model, or the strategy changed its frozen weights"
        few = f"it needs {FEWEST} candidates, and {len(view.labels)} are at hand"
        return few if len(view.labels) < FEWEST else ""

    def guess(self, view: UserView) -> Tensor:
        """Returns the negative loss of each candidate."""
        return -F.cross_entropy(view.logits.double(), view.labels, reduction="none")

    def score(self, guess: Tensor, truth: Truth) -> Sequence[Figure]:
        """Returns the area under the curve, and the rates at small false positive rates."""
        trained_on = truth.members()
        members, others = guess[trained_on], guess[~trained_on]
        area = 100 * area_under_curve(members, others)
        return [
            Figure(name=FIGURES[0], value=area, floor=50, ceiling=100),
            *(
                Figure(
                    name=name,
                    value=100 * true_positives(members, others, rate),
                    floor=100 * chance_of(rate, len(others)),
                    ceiling=100,
                )
                for name, rate in zip(FIGURES[1:], FALSE_POSITIVES, strict=True)
            ),
        ]


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Returns the probability that a member has a larger score than another image.

    Example:
        >>> area_under_curve(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
        0.75
    """
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members, right=False)
    not_above = torch.searchsorted(ordered, members, right=True)
    return float((below + not_above).double().mean() / 2 / len(others))


def chance_of(rate: float, others: int) -> float:
    """Returns the expected result of `true_positives` if members are like other images.

    It is more than the rate, because the threshold is one of finitely many scores.

    Example:
        >>> chance_of(0.01, 999)
        0.01
    """
    return (int(rate * others) + 1) / (others + 1)


def true_positives(members: Tensor, others: Tensor, rate: float) -> float:
    """Returns the true positive rate at a given false positive rate.

    This is the share of members whose score is above a threshold. The threshold is the smallest one
    that at most the share `rate` of the other images exceeds.

    Args:
        members: The scores of members.
        others: The scores of images that are no members.
        rate: The largest share of others above the threshold, in [0, 1).

    Example:
        >>> true_positives(torch.tensor([3.0, 1.5]), torch.tensor([2.0, 1.0, 0.0, 0.0]), 0.25)
        1.0
    """
    threshold = others.sort(descending=True).values[int(rate * len(others))]
    return float((members > threshold).double().mean())
