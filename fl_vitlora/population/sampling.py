"""Chooses the participants of a round: a fraction of all clients, drawn with the run's seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fl_vitlora.config import Config
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.rng import generator
from fl_vitlora.training.optimizers import is_entrywise


class Bounds(NamedTuple):
    """The bounds of the number of clients that a worker trains in one batch.

    Attributes:
        bundles: The number of bundles into which a round is divided, if the other bounds allow it.
        images: The largest number of images in one training step.
        patches: The largest number of patches in one training step on a CPU.
    """

    bundles: int
    images: int
    patches: int


# 64 images of the bundled model have 1024 patches; with more patches a step is not faster.
WHOLE_MODEL = Bounds(bundles=8, images=64, patches=1024)
FROZEN_BACKBONE = Bounds(bundles=3, images=128, patches=2048)


def sample(clients: Sequence[int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Chooses the participants of a round.

    Args:
        clients: The numbers of all clients.
        fraction: The share of the clients to choose, in (0, 1]. The number of chosen clients is
            rounded up, so at least one client is chosen.
        seed: The run's seed.
        server_round: The number of the round, from 1.

    Returns:
        The numbers of the participants, sorted.

    Example:
        >>> len(sample(range(20), 0.25, seed=0, server_round=1))
        5
    """
    order = torch.randperm(len(clients), generator=generator(seed, "sampling", server_round))
    chosen = order[: cohort_size(len(clients), fraction)]
    return sorted(clients[position] for position in chosen.tolist())


def trained_together(config: Config, patches: int = 0) -> int:
    """Returns the largest number of clients that a worker trains in one batch.

    If the setting `engine.cohort` is given, its value is returned. Without `engine.cohort`, the
    number is an eighth of a round's participants, so that eight workers have work. The number is
    smaller if a step would otherwise have more than 64 images, about as many as the cache of a core
    can hold, or on a CPU more than 1024 patches. The number is 1 if clients cannot share a batch,
    for example in full fine-tuning or with an optimiser that does not compute entry by entry.

    If the method never changes the backbone, a CPU trains a third of the participants in one batch,
    in steps of up to 128 images and 2048 patches. Such a method trains only a small network on
    features. Much of the time of its steps is the fixed time of PyTorch's calls, which is the same
    for many clients as for one. Messages to the clients with the most images are sent first. So on
    two cores, one worker trains the third with the most images, and the other worker trains the
    remaining two thirds. With two halves, the other worker would wait for the worker with the
    larger half. The bound of patches keeps the features of a bundle small.

    The returned number depends neither on the number of workers nor on whether clients keep
    features. Therefore these two change neither the rounding of sums nor the result of a run.

    Args:
        config: The configuration of the experiment.
        patches: The number of patches of an image if a CPU computes. With 0, which is meant for a
            GPU, patches are not counted.

    Example:
        >>> trained_together(Config(clients=20)), trained_together(Config(clients=500))
        (3, 8)
        >>> trained_together(Config(clients=500), patches=196)
        1
        >>> from fl_vitlora.config import FineTuningConfig
        >>> head = Config(clients=20, finetuning=FineTuningConfig(method="head"))
        >>> trained_together(head, patches=16), trained_together(head, patches=196)
        (7, 1)
    """
    if config.engine.cohort is not None:
        return config.engine.cohort
    method = method_of(config.finetuning)
    if not (method.stackable and is_entrywise(config.training)):
        return 1
    bounds = FROZEN_BACKBONE if patches and method.frozen_backbone else WHOLE_MODEL
    images = min(bounds.images, bounds.patches // patches) if patches else bounds.images
    share = math.ceil(cohort_size(config.clients, config.fraction) / bounds.bundles)
    return max(1, min(share, images // config.training.batch_size))


def cohort_size(clients: int, fraction: float) -> int:
    """Returns the number of participants of a round, clients · fraction rounded up.

    If the product exceeds a whole number only by a rounding error, no client is added.

    Example:
        >>> cohort_size(20, 0.15), cohort_size(20, 0.001)
        (3, 1)
    """
    return max(1, math.ceil(clients * fraction - 1e-9))
