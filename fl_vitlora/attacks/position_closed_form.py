"""Recovers the patches of an image in closed form, if the position embedding is trained.

Token i is E·xᵢ + positionᵢ. So the gradient of the position embedding is the gradient δᵢ of
each token, and the gradient of the patch embedding is Σ δᵢ·xᵢᵀ. After one step of plain descent on
one image the server knows both gradients. With N patches and a width of W ≥ N the patches xᵢ follow
from

    dL/dE = δᵀ·X,    δ = dL/dposition,

by least squares. Only the method `full` sends the position embedding (`docs/trust.md`).

Source: Lu et al., APRIL, CVPR 2022 (arXiv 2112.14087). The paper assumes that attention follows the
embeddings; here any layers may follow.

Letters in shapes: N patches, D entries of a patch, W width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.pictures import Pictures, beside, from_patches
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.federation.observer import Sight
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import POSITION, WEIGHT
from fl_vitlora.strategy import Update

PATCHES, ERROR = "patches recovered", "mean error of a pixel, of 255"
HALF_A_LEVEL = 0.5  # of 255 levels; with a smaller error, rounding gives the exact pixel


@dataclass(frozen=True)
class Recovered:
    """A guess: the patches of the image of each client.

    Attributes:
        patches: The patches as the model reads them, float64 (N, D) each.
        patch_size: The side of a patch in pixels.
        plain: True if the updates are sent in plain coordinates.
    """

    patches: Mapping[int, Tensor]
    patch_size: int
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class PositionClosedForm(Attack[ServerView, Recovered]):
    """The attack on updates that are one step of plain descent on one image."""

    adversaries = (ServerView,)
    goal = "All patches of an image, from the gradients of patch and position embedding."
    figures = (PATCHES, ERROR)

    def lacks(self, view: ServerView) -> str:
        """Returns why the server has no gradients of both embeddings for one image."""
        if reason := view.lacks_single_updates():
            return reason
        if not any(POSITION in update.delta for s in view.rounds for update in s.updates):
            return "no client sends its position embedding"
        if not any(True for _ in _steps(view)):
            return "no update is one step of plain descent on one image with a head that learns"
        return ""

    def guess(self, view: ServerView) -> Recovered:
        """Returns the patches of each client that sent one step on one image."""
        found: dict[int, Tensor] = {}
        for sight, update in _steps(view):
            if update.client not in found:
                view.clock.check()
                found[update.client] = patches_of(*gradients_of(sight, update, view))
        plain = view.public.settings.finetuning.patch_embedding == "aligned"
        return Recovered(patches=found, patch_size=view.public.patch_size, plain=plain)

    def score(self, guess: Recovered, truth: Truth) -> Sequence[Figure]:
        """Returns the share of patches whose pixels are all exact, and the mean error."""
        shares, errors = [], []
        for client, patches in guess.patches.items():
            owned = truth.owned[client]
            image = (owned.plain if guess.plain else owned.ciphertext)[:1]
            true = normalize(to_blocks(image, guess.patch_size)[0]).double()
            off = (patches - true).abs() * 127.5
            shares.append(float((off < HALF_A_LEVEL).all(dim=1).double().mean()))
            errors.append(float(off.mean()))
        return [
            Figure(name=PATCHES, value=100 * mean(shares), floor=0, ceiling=100),
            Figure(name=ERROR, value=mean(errors), unit=""),
        ]

    def pictures(self, guess: Recovered, truth: Truth) -> Pictures:
        """Returns the image of the first client."""
        client, patches = next(iter(guess.patches.items()))
        owned = truth.owned[client]
        height, width = owned.plain.shape[-2:]
        return beside(owned, from_patches(patches[None], (height, width), guess.patch_size))


def _steps(view: ServerView) -> Iterator[tuple[Sight, Update]]:
    """Yields the updates that are one step of plain descent on one image, with their rounds."""
    settings, position = view.public.settings, view.public.reader.position
    if settings.training.optimizer != "sgd" or position is None:
        return
    for sight in view.rounds:
        for update in sight.updates:
            delta = update.delta
            one = update.samples == 1 and update.steps == 1
            if one and WEIGHT in delta and POSITION in delta and delta[POSITION].any():
                yield sight, update


def gradients_of(sight: Sight, update: Update, view: ServerView) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the patch embedding (W, D) and of the position embedding (N, W).

    One step is -η·(gradient + λ·w), with a learning rate η for each tensor and weight decay λ.
    """
    training, position = view.public.settings.training, view.public.reader.position
    assert position is not None
    rate, decay = view.public.rates[sight.round - 1], training.weight_decay
    found = [
        -update.delta[name].double() / (rate * share) - decay * sight.model[name].double()
        for name, share in (
            (WEIGHT, training.patch_embed_rate),
            (POSITION, training.body_rate),
        )
    ]
    return found[0].flatten(1), found[1][0, -len(position) :]


def patches_of(embedding: Tensor, tokens: Tensor) -> Tensor:
    """Solves dL/dE = δᵀ·X for the patches.

    Args:
        embedding: The gradient dL/dE of the patch embedding, (W, D).
        tokens: The gradient δ of the position embedding, (N, W).

    Returns:
        The patches X, float64 (N, D).

    Example:
        >>> tokens = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
        >>> patches_of(tokens.T @ torch.tensor([[3.0], [4.0]]), tokens).round(decimals=9).tolist()
        [[3.0], [4.0]]
    """
    solved: Tensor = torch.linalg.lstsq(tokens.double().T, embedding.double(), driver="gelsd")[0]
    return solved
