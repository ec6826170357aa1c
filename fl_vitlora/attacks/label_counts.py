"""Counts the images of each class that a client has, from the update of the head.

The gradient of the head's bias is softmax - onehot, averaged over images. With a head of zeros the
softmax is 1/L. So after one step of plain descent with the rate η the bias of class c changes by

    Δb_c = η · (1 - s) · (n_c / n - 1/L),    s = label smoothing,

which gives the counts n_c exactly. The statistics of the part `lda` contain the shares n_c / n.
After several steps, or with another optimiser, the attack only uses that the bias of a class rises
with the number of its images: it assumes that the shares are proportional to Δb_c - min Δb. This
implies that the client has no image of the class whose bias fell most.

Letters in shapes: L classes, n images of a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import Public, ServerView
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning.groups import LORA, exchanged_name
from fl_vitlora.finetuning.lda import MEANS
from fl_vitlora.strategy import Update

BIAS = "head.bias"
SHARES = exchanged_name(MEANS, LORA)
RIGHT, PRESENT = "images counted in their class", "presence of a class told"
EXACT = "clients counted exactly"


@dataclass(frozen=True, kw_only=True)
class LabelCounts(Attack[ServerView, Mapping[int, Tensor]]):
    """The attack on the first update of each client. A guess is the counts of each client."""

    adversaries = (ServerView,)
    goal = "How many images of each class a client has, from its first update of the head."
    figures = (RIGHT, PRESENT, EXACT)

    def lacks(self, view: ServerView) -> str:
        """Returns why the server has no update of a single client with a bias of the head."""
        if reason := view.lacks_single_updates():
            return reason
        known = any(_tells(update) for sight in view.rounds for update in sight.updates)
        return "" if known else f"the updates have no tensor {BIAS}"

    def guess(self, view: ServerView) -> Mapping[int, Tensor]:
        """Returns the counts of each client, int64 (L,)."""
        found: dict[int, Tensor] = {}
        for sight in view.rounds:
            for update in sight.updates:
                if update.client not in found and _tells(update):
                    shares = shares_of(sight, update, view.public)
                    found[update.client] = whole_counts(shares, update.samples)
        return found

    def score(self, guess: Mapping[int, Tensor], truth: Truth) -> Sequence[Figure]:
        """Returns three shares in percent.

        They are the share of images whose class is counted correctly, the share of classes of a
        client whose presence is guessed correctly, and the share of clients whose counts are exact.
        """
        classes = len(next(iter(guess.values())))
        right, chance, present, usual, exact = [], [], [], [], []
        for client, counts in guess.items():
            true = torch.bincount(truth.labels[client], minlength=classes)
            right.append(overlap(counts, true))
            chance.append(overlap(whole_counts(torch.ones(classes), int(true.sum())), true))
            present.append(float(((counts > 0) == (true > 0)).double().mean()))
            usual.append(float((true > 0).double().mean()))
            exact.append(float((counts == true).all()))
        often = mean(usual)
        return [
            _figure(RIGHT, right, mean(chance)),
            _figure(PRESENT, present, max(often, 1 - often)),
            Figure(name=EXACT, value=100 * mean(exact)),
        ]


def _tells(update: Update) -> bool:
    return BIAS in update.delta or SHARES in update.delta


def _figure(name: str, shares: Sequence[float], chance: float) -> Figure:
    return Figure(name=name, value=100 * mean(shares), floor=100 * chance, ceiling=100)


def shares_of(sight: Sight, update: Update, public: Public) -> Tensor:
    """Returns the share of each class among the images of a client, (L,).

    Args:
        sight: The data of the round.
        update: The update of the client.
        public: The settings of the run.
    """
    if SHARES in update.delta and not sight.model[SHARES].any():
        return update.delta[SHARES][:, -1].double()
    change = update.delta[BIAS].double()
    if not is_one_step_of_descent(sight, update, public):
        return change - change.min()
    training = public.settings.training
    rate = public.rates[sight.round - 1] * training.head_rate * (1 - training.label_smoothing)
    return 1 / len(change) + change / rate


def is_one_step_of_descent(sight: Sight, update: Update, public: Public) -> bool:
    """Returns True if an update is one step of plain descent from a head of zeros."""
    settings = public.settings
    return (
        settings.training.optimizer == "sgd"
        and settings.training.clip_norm is None
        and settings.privacy.clipping_norm is None
        and update.steps == 1
        and not any(sight.model[name].any() for name in (BIAS, "head.weight"))
    )


def whole_counts(shares: Tensor, images: int) -> Tensor:
    """Rounds shares to whole counts with a given sum, by the largest remainders.

    Args:
        shares: The shares, (L,), which are scaled to the sum 1. A negative share counts as zero.
        images: The number n of images.

    Returns:
        The counts, int64 (L,).

    Example:
        >>> whole_counts(torch.tensor([0.26, 0.5, 0.24]), 4).tolist()
        [1, 2, 1]
    """
    positive = shares.double().clamp(min=0)
    total = positive.sum()
    exact = images * (positive / total if total > 0 else torch.ones_like(positive) / len(positive))
    counts = exact.floor().long()
    left = images - int(counts.sum())
    counts[(exact - counts).argsort(descending=True, stable=True)[:left]] += 1
    return counts


def overlap(counts: Tensor, true: Tensor) -> float:
    """Returns the share of images for which two counts agree on the class.

    Example:
        >>> overlap(torch.tensor([2, 2]), torch.tensor([3, 1]))
        0.75
    """
    return float(torch.minimum(counts, true).sum() / true.sum())
