"""Derives from an update the gradient that reconstructed images should have.

One step of plain descent changes a tensor w by Δ = -η·(g + d·w), where η is the learning rate of
the tensor and d the weight decay. So the gradient g is known exactly. The size of a gradient that
was clipped is not known. After several steps, or after a step of another optimiser, Δ points only
roughly against the gradient. In these cases -Δ is used as the gradient (a pseudo-gradient), and
only the direction of each tensor counts.

Letters in shapes: B images, L classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_vitlora.attacks.label_counts import BIAS, whole_counts
from fl_vitlora.attacks.views import Public
from fl_vitlora.config import Config
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning.groups import BODY, HEAD, PATCH_EMBEDDING, group_of
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.strategy import Update

LEAST = 1e-12  # a tensor whose change has a smaller norm counts as a tensor without a gradient


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The gradient of one update.

    Attributes:
        client: The number of the client.
        model: The tensors with which the round began.
        gradient: The gradient of each tensor that has one, by name.
        exact: True if the gradient is known exactly; False if only the directions count.
        classes: The labels that follow from the update, int64 (B,), in ascending order. There is
            one label for each image of the client. Some of the labels may be wrong.
    """

    client: int
    model: Mapping[str, Tensor] = field(repr=False)
    gradient: Mapping[str, Tensor] = field(repr=False)
    exact: bool
    classes: Tensor


def most_telling(
    rounds: Sequence[Sight], public: Public, rates: Mapping[str, float]
) -> list[Observed]:
    """Chooses the update of each client that reveals most about its images.

    An update without a gradient of the patch embedding reveals nothing about patches; an example is
    the first step of a model whose head is zero. The other updates are sorted: first come updates
    of fewer images, then those of fewer steps, then those with more tensors that have a gradient.

    Args:
        rounds: The data that the server saw in each round.
        public: The settings of the run.
        rates: The factors of the learning rates of single tensors (`methods.rates`).

    Returns:
        One gradient for each client, sorted in the same way.
    """
    best: dict[int, tuple[tuple[int, int, int], int, Update]] = {}
    for number, sight in enumerate(rounds):
        for update in sight.updates:
            if WEIGHT in update.delta and update.delta[WEIGHT].any():
                moved = sum(bool(change.any()) for change in update.delta.values())
                rank = (update.samples, update.steps, -moved)
                if update.client not in best or rank < best[update.client][0]:
                    best[update.client] = (rank, number, update)
    chosen = sorted(best.values(), key=lambda one: (one[0], one[2].client))
    return [observed(rounds[number], update, public, rates) for _, number, update in chosen]


def observed(sight: Sight, update: Update, public: Public, rates: Mapping[str, float]) -> Observed:
    """Returns the gradient of an update. The arguments are those of `most_telling`."""
    settings, exact = public.settings, is_exact(public.settings, update.steps)
    gradient = {}
    for name, change in update.delta.items():
        if float(change.norm()) < LEAST:
            continue
        gradient[name] = -change
        if exact:
            factor = rate_factor(settings, name) * rates.get(name, 1.0)
            gradient[name] = -change / (public.rates[sight.round - 1] * factor)
            gradient[name] -= settings.training.weight_decay * sight.model[name]
    classes = torch.zeros(update.samples, dtype=torch.int64)
    if BIAS in update.delta:
        change = update.delta[BIAS].double()
        counts = whole_counts(change - change.min(), update.samples)
        if update.samples == 1:
            counts = torch.zeros_like(counts)
            counts[change.argmax()] = 1  # the only class whose logit rises
        classes = torch.arange(len(counts)).repeat_interleave(counts)
    return Observed(
        client=update.client, model=sight.model, gradient=gradient, exact=exact, classes=classes
    )


def is_exact(settings: Config, steps: int) -> bool:
    """Returns True if an update of `steps` steps is the gradient times a known number.

    Example:
        >>> is_exact(Config(), 1)  # AdamW
        False
    """
    training = settings.training
    return (
        training.optimizer == "sgd"
        and steps == 1
        and training.clip_norm is None
        and settings.privacy.clipping_norm is None
    )


def rate_factor(settings: Config, name: str) -> float:
    """Returns the learning rate of a tensor as a multiple of the rate of the round."""
    training = settings.training
    factors = {
        PATCH_EMBEDDING: training.patch_embed_rate,
        HEAD: training.head_rate,
        BODY: training.body_rate,
    }
    return factors.get(group_of(name), 1.0)
