"""Who takes part in a round: as many as a fraction says, drawn by the run's seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fl_vitlora.rng import generator


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


def cohort_size(clients: int, fraction: float) -> int:
    """Counts the participants of a round; rounding errors of the product do not add one.

    Example:
        >>> cohort_size(20, 0.15), cohort_size(20, 0.001)
        (3, 1)
    """
    return max(1, math.ceil(clients * fraction - 1e-9))
