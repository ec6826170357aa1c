"""Chooses the participants of a round: a fraction of all clients, drawn with the run's seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fl_vitlora.config import Config
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.rng import generator
from fl_vitlora.training.optimizers import is_entrywise

BUNDLES_A_ROUND = 8
IMAGES_A_STEP = 64
PATCHES_A_STEP = 1024  # 64 images of the bundled model; with more patches a step is not faster


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
    for example in full fine-tuning or with an optimiser that does not compute entry by entry. The
    number of workers has no influence, so that the rounding of sums, and so the results, do not
    depend on the number of workers.

    Args:
        config: The configuration of the experiment.
        patches: The number of patches of an image if a CPU computes. With 0, which is meant for a
            GPU, patches are not counted.

    Example:
        >>> trained_together(Config(clients=20)), trained_together(Config(clients=500))
        (3, 8)
        >>> trained_together(Config(clients=500), patches=196)
        1
    """
    if config.engine.cohort is not None:
        return config.engine.cohort
    if not (method_of(config.finetuning).stackable and is_entrywise(config.training)):
        return 1
    participants = cohort_size(config.clients, config.fraction)
    most = IMAGES_A_STEP // config.training.batch_size
    if patches:
        most = min(most, PATCHES_A_STEP // (config.training.batch_size * patches))
    return max(1, min(math.ceil(participants / BUNDLES_A_ROUND), most))


def cohort_size(clients: int, fraction: float) -> int:
    """Returns the number of participants of a round, clients · fraction rounded up.

    If the product exceeds a whole number only by a rounding error, no client is added.

    Example:
        >>> cohort_size(20, 0.15), cohort_size(20, 0.001)
        (3, 1)
    """
    return max(1, math.ceil(clients * fraction - 1e-9))
