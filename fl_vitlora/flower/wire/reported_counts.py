"""What clients say about themselves, held to what the server knows.

A client states in its greeting how many images it holds. From then on it can state no other number,
and the number of its optimiser steps follows from its images and from the plan of training. So an
update brings nothing that could give its sender more weight than it greeted with. How many images a
client really holds is known to nobody but itself; `limited` bounds what any such statement can do.

K clients, n images of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import MetricRecord

from fl_vitlora.config import TrainingConfig
from fl_vitlora.federation.evaluation import Measured
from fl_vitlora.flower.wire import messages
from fl_vitlora.training.steps import steps_of

MOST_IMAGES = 10**9  # of one client, be it for training or for testing
LARGEST_LOSS = 1e6  # as no cross-entropy that still says anything


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the update of a client must state.

    Attributes:
        images: Number of its images, as in its greeting.
        steps: Of the optimiser; any positive number where the plan of training is not known.
    """

    images: int
    steps: int | None = None

    @classmethod
    def of(cls, images: int, training: TrainingConfig | None) -> Counts:
        """Works out what follows from the images of a client and the plan of training."""
        return cls(images=images, steps=None if training is None else steps_of(images, training))


def read_images(metrics: MetricRecord) -> int:
    """Reads how many images a client says it holds.

    Raises:
        ValueError: If that is no whole number from 1 to `MOST_IMAGES`.
    """
    images = messages.whole(metrics, messages.SAMPLES)
    if not 1 <= images <= MOST_IMAGES:
        raise ValueError(f"it reports {images} images, expected 1 to {MOST_IMAGES}")
    return images


def check_images(metrics: MetricRecord, expected: Counts) -> None:
    """Refuses another number of images than the client greeted with.

    Raises:
        ValueError: With both numbers.
    """
    images = messages.whole(metrics, messages.SAMPLES)
    if images != expected.images:
        raise ValueError(f"it reports {images} images; in its greeting it had {expected.images}")


def read_steps(metrics: MetricRecord, expected: Counts) -> int:
    """Reads how many steps a client took.

    Raises:
        ValueError: If its images and the plan of training make another number.
    """
    steps = messages.whole(metrics, messages.STEPS)
    if steps < 1 or steps != (expected.steps or steps):
        raise ValueError(
            f"it reports {steps} steps, where its {expected.images} images make "
            f"{expected.steps or 'at least 1'}; training.epochs and training.batch_size must be "
            "the same everywhere"
        )
    return steps


def read_loss(metrics: MetricRecord, name: str = messages.LOSS) -> float:
    """Reads a mean cross-entropy.

    Raises:
        ValueError: If it is NaN, negative, or larger than `LARGEST_LOSS`.
    """
    loss = messages.scalar(metrics, name)
    if not 0 <= loss <= LARGEST_LOSS:  # NaN is not within either
        raise ValueError(f"it reports a loss of {loss}, expected 0 to {LARGEST_LOSS:g}")
    return loss


def read_accuracy(metrics: MetricRecord, name: str) -> float:
    """Reads a share of images.

    Raises:
        ValueError: If it does not lie between 0 and 1.
    """
    accuracy = messages.scalar(metrics, name)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"it reports an accuracy of {accuracy}, expected 0 to 1")
    return accuracy


def read_measured(metrics: MetricRecord, views: Sequence[str]) -> tuple[int, Measured]:
    """Reads what one client measured: its number of test images, accuracy and loss by view.

    Raises:
        ValueError: If a number is missing or impossible.
    """
    return read_images(metrics), {
        view: (
            read_accuracy(metrics, messages.ACCURACY_OF + view),
            read_loss(metrics, messages.LOSS_OF + view),
        )
        for view in views
    }


def limited(images: Mapping[int, int], share: float | None) -> dict[int, int]:
    """Cuts counts down so that none is more than a share of their sum.

        min(n, c),  with the largest c for which c ≤ share · Σ min(n, c)

    Args:
        images: n of each client that takes part in a round, at least 1.
        share: The largest share of one client in (0, 1]; at least 1/K is allowed. No limit if None.

    Returns:
        The counts that the clients weigh by.

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
    """Finds c, as if the first counts were cut to it: m·c + the rest = c / share."""
    rest = sum(falling)
    for cut, largest in enumerate(falling):
        free = 1 - share * cut
        cap = share * rest / free if free > 0 else math.inf
        if largest <= cap:
            return max(1, math.floor(min(cap, float(falling[0]))))
        rest -= largest
    return max(1, falling[-1])


def largest_share(images: Mapping[int, int]) -> tuple[int, float]:
    """Finds the client that says it holds most images, and its share of all.

    Example:
        >>> largest_share({0: 10, 1: 30})
        (1, 0.75)
    """
    client = max(images, key=lambda number: images[number])
    return client, images[client] / sum(images.values())
