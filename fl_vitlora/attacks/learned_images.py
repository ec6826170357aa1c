"""Draws plain images from single ciphertexts by regression, whatever their keys are.

The adversary encrypts the public images with its own keys, a new key for each image. A regression
learns the plain image from features that hardly any key changes (`invariants`). Then it draws each
image of a client from its ciphertext. The drawing shows what the features say about an image: its
class, brightness and thickness of strokes, and not more. A key for every image does not prevent the
attack.

The regression is kernel ridge regression with Gaussian kernels, which needs no tuning of a network
for each data set.

Source: the inverse transformation network of Sirichotedumrong & Kiya (arXiv 2010.06198). Their
network reads the pixels of ciphertext under one key. It cannot learn from keys that never repeat,
so this attack reads features that do not depend on the key.

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.invariants import features
from fl_vitlora.attacks.label_reading import (
    FEWEST_KNOWN,
    MOST_READ,
    pixels,
    too_large,
    under_own_keys,
)
from fl_vitlora.attacks.pictures import Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.similarity import mean_error, structural_similarity
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ThiefView, WorkerView

RIDGE = 0.1  # alpha of the regression
WHITE = 255.0
SIMILARITY, ERROR = "similarity to the plain image", "mean error of a pixel, of 255 levels"


@dataclass(frozen=True)
class Drawn:
    """A guess: plain images.

    Attributes:
        client: The number of the client.
        images: A drawing of each of the first images of the client, (n, C, H, W) in [0, 255].
        usual: The mean of the public images, which one draws without any ciphertext, (C, H, W).
    """

    client: int
    images: Tensor = field(repr=False)
    usual: Tensor = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LearnedImages(Attack[WorkerView | ThiefView, Drawn]):
    """The attack on each image by itself. Therefore it may read more images than `images`."""

    adversaries = (WorkerView, ThiefView)
    goal = "What an image looks like, from its ciphertext alone and a regression."
    figures = (SIMILARITY, ERROR)
    each_alone = True

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why the adversary has no ciphertext, or no images from which it can learn."""
        public = view.public
        if view.sealed or not public.cipher.steps:
            return view.sealed or "the images are not encrypted"
        if len(public.images) < FEWEST_KNOWN:
            return f"it needs {FEWEST_KNOWN} plain images, and {len(public.images)} are at hand"
        return too_large(public.cipher.geometry)

    def guess(self, view: WorkerView | ThiefView) -> Drawn:
        """Learns from public images under keys of the adversary, and draws the client's images."""
        assert view.images is not None
        public, size = view.public, view.public.cipher.block_size
        table = features(under_own_keys(public), size)
        view.clock.check()
        regression = make_pipeline(
            StandardScaler(), KernelRidge(kernel="rbf", gamma=1 / table.shape[1], alpha=RIDGE)
        )
        known = pixels(public.images)
        usual = known.mean(axis=0)
        regression.fit(table, known - usual)
        some = view.images[:MOST_READ]
        drawn = torch.from_numpy(regression.predict(features(some, size)) + usual)
        shape = public.images.shape[1:]
        return Drawn(
            client=view.client,
            images=(WHITE * drawn.clamp(0, 1)).view(-1, *shape),
            usual=(WHITE * torch.from_numpy(usual)).view(shape),
        )

    def score(self, guess: Drawn, truth: Truth) -> Sequence[Figure]:
        """Returns the similarity of the drawings to the plain images.

        The figure by chance is the similarity of the mean of the public images.
        """
        plain = truth.owned[guess.client].plain[: len(guess.images)]
        usual = guess.usual.expand_as(guess.images)
        found, chance = (
            100 * float(structural_similarity(drawn, plain).mean())
            for drawn in (guess.images, usual)
        )
        error, usual_error = (
            float(mean_error(drawn, plain).mean()) for drawn in (guess.images, usual)
        )
        return [
            Figure(name=SIMILARITY, value=found, floor=chance, ceiling=100),
            Figure(name=ERROR, value=error, unit="", floor=usual_error, ceiling=0),
        ]

    def pictures(self, guess: Drawn, truth: Truth) -> Pictures:
        """Returns the drawings of the first images of the client."""
        return beside(truth.owned[guess.client], guess.images)
