"""Finds which classes a client has, from the updates of the head of all its rounds.

The gradient of the head's bias of class c is the mean of softmax_c - onehot_c over the images of a
client. So the bias of class c rises if the client has images of this class, and falls otherwise.
How far a bias moves depends on the model, which is the same for all clients of a round. Therefore a
client's change of a bias is compared with the mean over all clients of the round, in standard
deviations. The sum over all rounds is the score of a pair of client and class. The row of the
head's weight for class c moves in a similar way: towards the features of the images of this class.
Therefore the attack also uses how far each client moved this row in the direction of the mean
change of all clients.

This is property inference in the sense of Melis et al., S&P 2019. Unlike this attack,
`label_counts` uses only the first update of a client, and counts images.

Letters in shapes: K clients of a round, L classes, W width of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.membership_figures import area_under_curve
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.federation.observer import Sight

BIAS, WEIGHT = "head.bias", "head.weight"
FEWEST_CLIENTS = 2  # clients of a round; a client is compared with the mean over all clients
AREA, ABSENT = "area under the curve", "pairs of client and class that are absent"


@dataclass(frozen=True, kw_only=True)
class ClassPresence(Attack[ServerView, Mapping[int, Tensor]]):
    """The attack. A guess has a score of each class for each client, (L,)."""

    adversaries = (ServerView,)
    goal = "Which classes a client has, from its updates of the head in all rounds."
    figures = (AREA, ABSENT)

    def lacks(self, view: ServerView) -> str:
        """Returns why the server has no updates of a head to compare; empty if it has some."""
        if reason := view.lacks_single_updates():
            return reason
        if not any(_usable(sight) for sight in view.rounds):
            return f"no round has {FEWEST_CLIENTS} clients that send {BIAS}"
        return ""

    def guess(self, view: ServerView) -> Mapping[int, Tensor]:
        """Returns the score of each class for each client; a larger score means "present"."""
        found: dict[int, Tensor] = {}
        for sight in filter(_usable, view.rounds):
            view.clock.check()
            updates = [update for update in sight.updates if BIAS in update.delta]
            evidence = standardised(torch.stack([update.delta[BIAS] for update in updates]))
            if all(WEIGHT in update.delta for update in updates):
                rows = torch.stack([update.delta[WEIGHT] for update in updates])
                evidence = evidence + standardised(along_the_mean(rows))
            for update, scores in zip(updates, evidence, strict=True):
                found[update.client] = found.get(update.client, 0) + scores
        return found

    def score(self, guess: Mapping[int, Tensor], truth: Truth) -> Sequence[Figure]:
        """Returns how well scores distinguish a client's classes from classes it does not have."""
        present = torch.cat(
            [
                torch.bincount(truth.labels[client], minlength=len(scores)) > 0
                for client, scores in guess.items()
            ]
        )
        scores = torch.cat(list(guess.values()))
        told = bool(present.any() and not present.all())  # otherwise all pairs are alike
        area = 100 * area_under_curve(scores[present], scores[~present]) if told else 50.0
        return [
            Figure(name=AREA, value=area, floor=50, ceiling=100),
            Figure(name=ABSENT, value=int((~present).sum()), unit=""),
        ]


def _usable(sight: Sight) -> bool:
    return sum(BIAS in update.delta for update in sight.updates) >= FEWEST_CLIENTS


def standardised(changes: Tensor) -> Tensor:
    """Returns how far each client is from the mean of a class, in standard deviations.

    The standard deviation is over all clients and classes.

    Args:
        changes: A number for each client and class, (K, L).

    Example:
        >>> standardised(torch.tensor([[3.0, 3.0], [1.0, 1.0]])).tolist()
        [[1.0, 1.0], [-1.0, -1.0]]
    """
    away = changes.double() - changes.double().mean(dim=0)
    spread = away.square().mean().sqrt()
    return away / spread if spread > 0 else away


def along_the_mean(rows: Tensor) -> Tensor:
    """Returns how far each client moved the weight of a class in the mean direction of all clients.

    The direction of a class is the mean change of its row over all clients, minus the mean over all
    classes. A client with images of the class moves further in this direction than other clients.

    Args:
        rows: The changes of the head's weight, (K, L, W).

    Returns:
        The lengths, float64 (K, L).
    """
    centred = rows.double() - rows.double().mean(dim=1, keepdim=True)
    direction = centred.mean(dim=0)
    unit = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-12)
    lengths: Tensor = (centred * unit).sum(dim=2)
    return lengths
