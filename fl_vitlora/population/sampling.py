"""Who takes part in a round: as many as a fraction says, drawn by the run's seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fl_vitlora.config import Config
from fl_vitlora.finetuning.methods import method_of
from fl_vitlora.rng import generator

BUNDLES_A_ROUND = 8
IMAGES_A_STEP = 64


def sample(clients: Sequence[int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Chooses the participants of a round.

    Args:
        clients: Numbers of all clients.
        fraction: Share to choose, in (0, 1]; rounded up, so at least one.
        seed: The run's seed.
        server_round: From 1.

    Returns:
        Their numbers, sorted.

    Example:
        >>> len(sample(range(20), 0.25, seed=0, server_round=1))
        5
    """
    order = torch.randperm(len(clients), generator=generator(seed, "sampling", server_round))
    chosen = order[: cohort_size(len(clients), fraction)]
    return sorted(clients[position] for position in chosen.tolist())


def trained_together(config: Config) -> int:
    """Tells how many clients a worker trains in one batch, at most.

    Where it is not said, an eighth of a round's participants, so that eight workers find work, and
    no more than make up a step of 64 images, about what a core's cache holds. It is one where the
    method's clients cannot share a batch, as in full fine-tuning. It does not depend on the number
    of workers, as the rounding of sums would with it.

    Example:
        >>> trained_together(Config(clients=20)), trained_together(Config(clients=500))
        (3, 8)
    """
    if config.engine.cohort is not None:
        return config.engine.cohort
    if not method_of(config.finetuning).stackable:
        return 1
    participants = cohort_size(config.clients, config.fraction)
    most = IMAGES_A_STEP // config.training.batch_size
    return max(1, min(math.ceil(participants / BUNDLES_A_ROUND), most))


def cohort_size(clients: int, fraction: float) -> int:
    """Counts the participants of a round; rounding errors of the product do not add one.

    Example:
        >>> cohort_size(20, 0.15), cohort_size(20, 0.001)
        (3, 1)
    """
    return max(1, math.ceil(clients * fraction - 1e-9))
