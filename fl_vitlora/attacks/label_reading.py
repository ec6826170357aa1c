"""Reads the class of an image from its ciphertext alone, whatever its key is.

The adversary encrypts the public images with its own keys, a new key for each image. A classifier
learns their classes from features that hardly any key changes (`invariants`). Then it reads the
ciphertext of a client, one image at a time. So a key for every image does not prevent the attack.

A worker has the labels of its client anyway, but the attack does not use them. The attack measures
how much of the content of an image the ciphertext shows, for example to somebody who has images
without labels.

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.invariants import features
from fl_vitlora.attacks.key_search.block_statistics import Matrix
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import Public, ThiefView, WorkerView
from fl_vitlora.encryption.geometry import Geometry

MOST_READ = 200  # images of a client that are read; more images make the figure no better
FEWEST_KNOWN = 50  # public images from which a classifier can learn
MOST_VALUES, MOST_ENTRIES = 12_288, 768  # values of an image, and entries of a block; more are slow
PENALTY = 10.0  # C of the support vector machine
OWN_SECRET = bytes(32)  # the adversary's secret, for the images that it encrypts itself

Reader = Callable[[Matrix], Tensor]


@dataclass(frozen=True)
class Reading:
    """A guess: the classes of images.

    Attributes:
        client: The number of the client.
        labels: The class of each of the first images of the client, int64 (n,).
        read_plain: A function that reads the classes of plain images, for comparison.
    """

    client: int
    labels: Tensor
    read_plain: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LabelReading(Attack[WorkerView | ThiefView, Reading]):
    """The attack on each image by itself. Therefore it may read more images than `images`."""

    adversaries = (WorkerView, ThiefView)
    goal = "The class that an image shows, from its ciphertext alone."
    figures = ("labels read",)
    each_alone = True

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why the adversary has no ciphertext, or no images from which it can learn."""
        public = view.public
        if view.sealed or not public.cipher.steps:
            return view.sealed or "the images are not encrypted"
        labels = [] if public.labels is None else public.labels.tolist()
        if len(labels) < FEWEST_KNOWN:
            return f"it needs {FEWEST_KNOWN} labelled plain images, and {len(labels)} are at hand"
        if len(set(labels)) == 1:
            return "all available plain images have the same class"
        return too_large(public.cipher.geometry)

    def guess(self, view: WorkerView | ThiefView) -> Reading:
        """Learns from public images under keys of the adversary, and reads the client's images."""
        assert view.images is not None
        public, size = view.public, view.public.cipher.block_size
        assert public.labels is not None
        read = reader_of(features(under_own_keys(public), size), public.labels)
        read_pixels = reader_of(pixels(public.images), public.labels)
        return Reading(
            client=view.client,
            labels=read(features(view.images[:MOST_READ], size)),
            read_plain=lambda images: read_pixels(pixels(images)),
        )

    def score(self, guess: Reading, truth: Truth) -> Sequence[Figure]:
        """Returns the share of labels that are read correctly.

        The figure by chance is the share of the most common class. The best figure is the share of
        labels that are read correctly in plain images.
        """
        count = len(guess.labels)
        labels = truth.labels[guess.client][:count]
        plain = guess.read_plain(truth.owned[guess.client].plain[:count])
        commonest = float(torch.bincount(labels).max()) / count
        return [
            Figure(
                name=self.figures[0],
                value=100 * float((guess.labels == labels).double().mean()),
                floor=100 * commonest,
                ceiling=100 * float((plain == labels).double().mean()),
            )
        ]


def too_large(geometry: Geometry) -> str:
    """Returns why images of these sizes are not read; empty if they are."""
    fit = geometry.entries <= MOST_ENTRIES and geometry.blocks * geometry.entries <= MOST_VALUES
    if fit and min(geometry.blocks, geometry.entries) > 1:
        return ""
    return (
        f"it reads images of at most {MOST_VALUES:,} values, in several blocks of 2 to "
        f"{MOST_ENTRIES} entries"
    )


def under_own_keys(public: Public) -> Tensor:
    """Encrypts the public images, each with a key that the adversary has drawn for it."""
    cipher = public.cipher
    encrypted = [
        cipher.encrypt(image[None], cipher.key(OWN_SECRET, f"image {number}"))
        for number, image in enumerate(public.images)
    ]
    return torch.cat(encrypted)


def reader_of(table: Matrix, labels: Tensor) -> Reader:
    """Trains a support vector machine, and returns the function that reads labels with it.

    Args:
        table: Features of images, one row for each image.
        labels: The labels of these images.
    """
    machine = make_pipeline(StandardScaler(), SVC(C=PENALTY)).fit(table, labels.numpy())
    return lambda rows: torch.from_numpy(np.asarray(machine.predict(rows), dtype=np.int64))


def pixels(images: Tensor) -> Matrix:
    """Returns the pixels of images as features, one row for each image."""
    table: Matrix = images.flatten(1).double().numpy() / 255
    return table
