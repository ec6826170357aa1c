"""Removes inversions from single ciphertexts: every value above 127 is inverted.

Each value q becomes min(q, 255 - q), whether the key inverts the value or not. If pixels keep
their places, as in the scheme PE, this shows the outlines of an image without any key. Channels may
have changed places, so the mean over the channels is used. Each ciphertext is attacked by itself.
Therefore a key for every image does not prevent the attack, but moving pixels or blocks does.

Source: the feature reconstruction attack of Chang & Case (arXiv 2004.13263), as Sirichotedumrong &
Kiya describe it (arXiv 2010.06198).

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.pictures import Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.similarity import WHITE, structural_similarity
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ThiefView, WorkerView


@dataclass(frozen=True, kw_only=True)
class BrightnessFlip(Attack[WorkerView | ThiefView, tuple[int, Tensor]]):
    """The attack on `images` ciphertexts. A guess is a client and the images that were found."""

    adversaries = (WorkerView, ThiefView)
    goal = "What images show, from single ciphertexts whose bright values are inverted."
    figures = ("similarity to the plain image", "similarity to the plain image, folded alike")

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why the adversary has no ciphertext."""
        if view.sealed:
            return view.sealed
        return "" if view.public.cipher.steps else "the images are not encrypted"

    def guess(self, view: WorkerView | ThiefView) -> tuple[int, Tensor]:
        """Returns the client and `folded` of its first images, (n, 1, H, W)."""
        assert view.images is not None
        return view.client, folded(view.images[: self.images])

    def score(self, guess: tuple[int, Tensor], truth: Truth) -> Sequence[Figure]:
        """Returns the similarity of the guess to the plain images, and to `folded` plain images.

        The figure by chance is the similarity of another image of the same kind.
        """
        client, shown = guess
        owned = truth.owned[client]
        plain = owned.plain[: len(shown)]
        others = owned.others[torch.arange(len(shown)) % len(owned.others)]
        brightness, other = (some.double().mean(dim=1, keepdim=True) for some in (plain, others))
        found = torch.maximum(
            structural_similarity(shown, brightness),
            structural_similarity(WHITE - shown, brightness),
        )
        of_plain, of_folded = self.figures
        return [
            _figure(of_plain, found, structural_similarity(other, brightness)),
            _figure(
                of_folded,
                structural_similarity(shown, folded(plain)),
                structural_similarity(folded(others), folded(plain)),
            ),
        ]

    def pictures(self, guess: tuple[int, Tensor], truth: Truth) -> Pictures:
        """Returns the folded images; twice their values, which are at most 127."""
        client, shown = guess
        return beside(truth.owned[client], 2 * shown)


def folded(images: Tensor) -> Tensor:
    """Returns the mean of min(q, 255 - q) over the channels, for all values q of images.

    Args:
        images: Images, uint8 (n, C, H, W).

    Returns:
        Values from 0 to 127, float64 (n, 1, H, W).

    Example:
        >>> folded(torch.tensor([[[[10]], [[245]], [[127]]]], dtype=torch.uint8)).tolist()
        [[[[49.0]]]]
    """
    values = images.double()
    return torch.minimum(values, WHITE - values).mean(dim=1, keepdim=True)


def _figure(name: str, found: Tensor, chance: Tensor) -> Figure:
    value, floor = (100 * float(one.mean()) for one in (found, chance))
    return Figure(name=name, value=value, floor=floor, ceiling=100)
