"""Checks the numbers that clients report against numbers that the server knows.

A client states in its greeting (its first message) how many images it has, and must not state
another number later. The number of optimiser steps follows from the number of images and the
training settings. Therefore an update cannot give a client more weight than its greeting does. Only
the client knows how many images it really has; `limited` bounds the effect of a false number.

Letters: K is the number of clients, and n is the number of images of one client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import MetricRecord

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.views import VALIDATION
from fl_vitlora.federation.evaluation import Reported
from fl_vitlora.flower.wire import messages
from fl_vitlora.training.steps import steps_of

MOST_IMAGES = 10**9  # the most images that a client may state, for training or for testing
LARGEST_LOSS = 1e6  # larger than any meaningful cross-entropy


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The numbers that the update of a client must state.

    Attributes:
        images: The number of images, as in the client's greeting.
        steps: The number of optimiser steps; None if any positive number is accepted.
    """

    images: int
    steps: int | None = None

    @classmethod
    def of(cls, images: int, training: TrainingConfig | None) -> Counts:
        """Returns the numbers that follow from a client's images and the training settings."""
        return cls(images=images, steps=None if training is None else steps_of(images, training))


def read_images(metrics: MetricRecord, name: str = messages.SAMPLES) -> int:
    """Returns the number of images that a client states under a name.

    Raises:
        ValueError: If the number is not a whole number from 1 to `MOST_IMAGES`.
    """
    images = messages.whole(metrics, name)
    if not 1 <= images <= MOST_IMAGES:
        raise ValueError(f"it reports {images} images, expected 1 to {MOST_IMAGES}")
    return images


def check_images(metrics: MetricRecord, expected: Counts) -> None:
    """Refuses a number of images that differs from the client's first message, the greeting.

    Raises:
        ValueError: If the numbers differ; the message states both numbers.
    """
    images = messages.whole(metrics, messages.SAMPLES)
    if images != expected.images:
        raise ValueError(
            f"it reports {images} images, but its first message reported {expected.images}"
        )


def read_steps(metrics: MetricRecord, expected: Counts) -> int:
    """Returns the number of optimiser steps that a client states.

    Raises:
        ValueError: If the client's images and the training settings give another number.
    """
    steps = messages.whole(metrics, messages.STEPS)
    if steps < 1 or steps != (expected.steps or steps):
        raise ValueError(
            f"it reports {steps} steps, but its {expected.images} images need "
            f"{expected.steps or 'at least 1'}; training.epochs and training.batch_size must be "
            "the same at the server and at all clients"
        )
    return steps


def read_loss(metrics: MetricRecord, name: str = messages.LOSS) -> float:
    """Returns the mean cross-entropy that a client states.

    Raises:
        ValueError: If the loss is NaN, negative, or larger than `LARGEST_LOSS`.
    """
    loss = messages.scalar(metrics, name)
    if not 0 <= loss <= LARGEST_LOSS:  # NaN fails this comparison, too
        raise ValueError(f"it reports a loss of {loss}, expected 0 to {LARGEST_LOSS:g}")
    return loss


def read_accuracy(metrics: MetricRecord, name: str) -> float:
    """Returns the accuracy that a client states.

    Raises:
        ValueError: If the accuracy is not between 0 and 1.
    """
    accuracy = messages.scalar(metrics, name)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"it reports an accuracy of {accuracy}, expected 0 to 1")
    return accuracy


def read_measured(metrics: MetricRecord, views: Sequence[str]) -> tuple[int, Reported, int]:
    """Returns a client's number of test images, its results, and its number of validation images.

    The results are the accuracy and the loss for each view. Without the view of the validation
    images, the last number is 0.

    Raises:
        ValueError: If a number is missing or impossible.
    """
    images, validation = read_images(metrics), 0
    if VALIDATION in views:
        validation = read_images(metrics, messages.VALIDATION_SAMPLES)
    reported = {
        view: (
            read_accuracy(metrics, messages.ACCURACY_OF + view),
            read_loss(metrics, messages.LOSS_OF + view),
        )
        for view in views
    }
    return images, reported, validation


def limited(images: Mapping[int, int], share: float | None) -> dict[int, int]:
    """Limits numbers of images so that no client has more than a given share of their sum.

        min(n, c),  with the largest c for which c ≤ share · Σ min(n, c)

    Args:
        images: The number n of images of each participant of a round, at least 1.
        share: The largest share of one client, in (0, 1]; values below 1/K count as 1/K. If `share`
            is None, there is no limit.

    Returns:
        The limited numbers of images, by which the clients are weighted.

    Example:
        >>> limited({0: 30, 1: 40, 2: 2**62}, 0.5)
        {0: 30, 1: 40, 2: 70}
        >>> limited({0: 30, 1: 40, 2: 50}, 0.5)
        {0: 30, 1: 40, 2: 50}
    """
    if share is None or len(images) < 2:
        return dict(images)
    cap = _cap(sorted(images.values(), reverse=True), max(share, 1 / len(images)))
    return {client: min(count, cap) for client, count in images.items()}


def _cap(falling: list[int], share: float) -> int:
    """Returns the limit c for the numbers of images.

    If c limits the m largest counts, then m·c + (the sum of the other counts) = c / share.
    """
    rest = sum(falling)
    for cut, largest in enumerate(falling):
        free = 1 - share * cut
        cap = share * rest / free if free > 0 else math.inf
        if largest <= cap:
            return max(1, math.floor(min(cap, float(falling[0]))))
        rest -= largest
    return max(1, falling[-1])


def largest_share(images: Mapping[int, int]) -> tuple[int, float]:
    """Returns the client that states the most images, and the client's share of all images.

    Example:
        >>> largest_share({0: 10, 1: 30})
        (1, 0.75)
    """
    client = max(images, key=lambda number: images[number])
    return client, images[client] / sum(images.values())
