"""Detects which patches a client trained on, from the span of its patch embedding's update.

The gradient of the patch embedding is Σ δᵢ·xᵢᵀ over all patches xᵢ of a batch. With plain descent
the rows of an update are sums of multiples of the patches. If the images have fewer patches than a
patch has entries, the rows span only the space of these patches. Then a patch in this space
probably belongs to the client, and a patch outside of it does not. Three kinds of updates span the
whole space and reveal nothing: updates of more images, updates by optimisers that scale each entry
(AdamW), and updates that a codec has rounded. The patches are ciphertext, or plain patches if
updates are sent in plain coordinates (``finetuning.patch_embedding=aligned``).

Under secure aggregation the sum of all updates spans the patches of all clients. The attack then
shows which patches at least one client has, but not which client.

Letters in shapes: D entries of a patch, W width of the model, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.models.backbone import normalize

SMALLEST = 1e-4  # smallest singular value that counts, as a share of the largest
OUTSIDE = 0.02  # a patch is outside of a span if a larger share of its length is outside of it
TOLD = "patches told to be the client's or not"
INSIDE, OTHERS = "patches of the client in the span", "other patches in the span"
RANK, WHOLE_RANK = "rank of an update", "rank of all patches of the kind"
JUDGED = 64  # images of a client whose patches are looked for


@dataclass(frozen=True)
class Spans:
    """A guess: for each client, the space that its patches span.

    Attributes:
        bases: Orthonormal bases, (D, r) each. The basis of all clients together has the number
            `SEVERAL`.
        patch_size: The side of a patch in pixels.
        plain: True if the updates are sent in plain coordinates.
    """

    bases: Mapping[int, Tensor]
    patch_size: int
    plain: bool = False

    def contains(self, client: int, patches: Tensor) -> Tensor:
        """Returns which patches (M, D) lie in the span of a client, bool (M,)."""
        basis = self.bases[client]
        outside = patches - (patches @ basis) @ basis.T
        return torch.lt(outside.norm(dim=1), OUTSIDE * patches.norm(dim=1))


@dataclass(frozen=True, kw_only=True)
class PatchSpan(Attack[ServerView, Spans]):
    """The attack on the update of each client whose patch embedding has the smallest rank."""

    adversaries = (ServerView,)
    goal = "Which patches a client has, from the span of its update or of a sum."
    figures = (TOLD, INSIDE, OTHERS, RANK, WHOLE_RANK)

    def lacks(self, view: ServerView) -> str:
        """Returns why the server has no update with one patch embedding."""
        if reason := view.lacks_patch_embedding():
            return reason
        _, change = next(view.patch_embedding_changes())
        return "every patch has its own kernel" if change.ndim == 3 else ""

    def guess(self, view: ServerView) -> Spans:
        """Returns the smallest span among the updates of each client."""
        found: dict[int, Tensor] = {}
        for client, change in view.patch_embedding_changes():
            view.clock.check()
            basis = row_space(change)
            known = found.get(client)
            if basis.shape[1] and (known is None or basis.shape[1] < known.shape[1]):
                found[client] = basis
        plain = view.public.settings.finetuning.patch_embedding == "aligned"
        return Spans(bases=found, patch_size=view.public.patch_size, plain=plain)

    def score(self, guess: Spans, truth: Truth) -> Sequence[Figure]:
        """Returns how well the spans distinguish patches of the clients from other patches.

        The judged figure is the mean of two shares: the share of the clients' patches that lie in
        the spans, and the share of the other patches that do not.
        """
        own, others, ranks = [], [], []
        for client in guess.bases:
            owned = truth.owned_by(client)
            own_images = owned.plain if guess.plain else owned.ciphertext
            other_images = owned.others if guess.plain else owned.others_ciphertext
            patches = distinct(own_images[:JUDGED], guess.patch_size)
            strange = distinct(other_images[:JUDGED], guess.patch_size, without=patches)
            own.append(_share(guess.contains(client, patches)))
            others.append(_share(guess.contains(client, strange)))
            ranks.append(row_space(torch.cat([patches, strange])).shape[1])
        rank = mean(basis.shape[1] for basis in guess.bases.values())
        told = 50 * (mean(own) + 1 - mean(others))
        return [
            Figure(name=TOLD, value=told, floor=50, ceiling=100),
            Figure(name=INSIDE, value=100 * mean(own)),
            Figure(name=OTHERS, value=100 * mean(others)),
            Figure(name=RANK, value=rank, unit=""),
            Figure(name=WHOLE_RANK, value=mean(ranks), unit=""),
        ]


def row_space(change: Tensor) -> Tensor:
    """Returns an orthonormal basis of the space that the rows of a matrix span.

    Args:
        change: The change of a patch embedding, (W, D).

    Returns:
        The basis, float64 (D, r). Directions whose singular value is less than `SMALLEST` times the
        largest one are left out, because rounding errors span such directions.

    Example:
        >>> row_space(torch.tensor([[3.0, 0.0], [6.0, 0.0]])).abs()
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """
    _, values, rows = torch.linalg.svd(change.double(), full_matrices=False)
    rank = int((values > SMALLEST * values[0]).sum())
    basis: Tensor = rows[:rank].T
    return basis


def distinct(images: Tensor, patch_size: int, without: Tensor | None = None) -> Tensor:
    """Returns the patches of images without repetitions, as the model reads them.

    Args:
        images: The images, uint8 (n, C, H, W).
        patch_size: The side of a patch in pixels.
        without: Patches to leave out, in the form in which this function returns patches.

    Returns:
        The patches, float64 (M, D).
    """
    known = set() if without is None else {row.tobytes() for row in without.numpy()}
    rows = torch.from_numpy(np.unique(to_blocks(images, patch_size).flatten(0, 1).numpy(), axis=0))
    patches = normalize(rows).double()
    return patches[[row.tobytes() not in known for row in patches.numpy()]]


def _share(told: Tensor) -> float:
    """Returns the share of true values; 1 if `told` is empty, because then nothing is wrong."""
    return float(told.double().mean()) if len(told) else 1.0
