"""Detects on which images a client has trained: their loss under the final model is smaller.

The adversary asks the model about candidate images whose labels it knows. Candidates with a small
loss are guessed to be members.

Source: Yeom et al., CSF 2018 (loss as the score).

Letters in shapes: M candidates, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.membership_figures import FIGURES, lacks_candidates, membership_figures
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import UserView


@dataclass(frozen=True, kw_only=True)
class MembershipLoss(Attack[UserView, Tensor]):
    """The attack. A guess is a score of each candidate, (M,); members should have larger scores."""

    adversaries = (UserView,)
    goal = "On which images a client has trained, from the loss of the final model."
    figures = FIGURES

    def lacks(self, view: UserView) -> str:
        """Returns why the adversary cannot compute outputs of the final model; empty if it can."""
        return lacks_candidates(view.labels)

    def guess(self, view: UserView) -> Tensor:
        """Returns the negative loss of each candidate."""
        return -F.cross_entropy(view.logits.double(), view.labels, reduction="none")

    def score(self, guess: Tensor, truth: Truth) -> Sequence[Figure]:
        """Returns the area under the curve, and the rates at small false positive rates."""
        return membership_figures(guess, truth.members())
