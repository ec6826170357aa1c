"""Gives each client the rank of its low-rank matrices, if clients have different ranks.

There are two ways to set ranks. The setting `finetuning.client_ranks` lists one rank for each
client. Or `finetuning.client_ranks` lists a few ranks, and `finetuning.rank_shares` gives the share
of the clients with each of these ranks. The seed decides which clients get which rank. The number
of clients with each rank is the same for all seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.rng import generator


def rank_of(config: Config, client: int) -> int | None:
    """Returns a client's rank, or None if all clients have the rank `finetuning.rank`.

    Args:
        config: The settings of the experiment.
        client: The number of the client.

    Example:
        >>> from fl_vitlora.config import load
        >>> one_by_one = load(None, {"clients": 3, "finetuning.client_ranks": [1, 4, 2]})
        >>> [rank_of(one_by_one, client) for client in range(3)]
        [1, 4, 2]
    """
    tuning = config.finetuning
    if set(tuning.client_ranks) <= {tuning.rank}:
        return None
    if not tuning.rank_shares:
        return tuning.client_ranks[client]
    return _dealt(tuning.client_ranks, tuning.rank_shares, config.clients, config.seed)[client]


def client_ranks(config: Config) -> tuple[int, ...]:
    """Returns the ranks of all clients; empty if all clients have the rank `finetuning.rank`."""
    ranks = [rank_of(config, client) for client in range(config.clients)]
    return tuple(rank for rank in ranks if rank is not None)


def quotas(shares: Sequence[float], total: int) -> list[int]:
    """Divides a total into whole numbers in proportion to shares (largest-remainder method).

    If two remainders are equal, the part of the earlier share is rounded up.

    Args:
        shares: The shares, not negative and not all zero; only their ratios matter.
        total: The whole number to divide; it is the sum of the parts.

    Returns:
        The parts, whose sum is `total`; each differs from its exact size, share / Σ shares · total,
        by less than one.

    Example:
        >>> quotas([0.5, 0.25, 0.25], 10)
        [5, 3, 2]
    """
    exact = [share / sum(shares) * total for share in shares]
    parts = [math.floor(part + 1e-9) for part in exact]  # 0.29 · 100 is a little less than 29
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def check(config: Config) -> None:
    """Checks that the settings give every client a rank, and that the method has low-rank matrices.

    Raises:
        UserError: If the ranks do not fit; the message states what was expected.
    """
    tuning = config.finetuning
    ranks, shares = tuning.client_ranks, tuning.rank_shares
    if not ranks and not shares:
        return
    if not ranks:
        raise UserError(
            "finetuning.rank_shares is set without ranks; set one rank for each share, for example "
            "finetuning.client_ranks=[1,2,4]"
        )
    if not method_of(tuning).low_rank:
        raise UserError(
            f"finetuning.client_ranks: method {tuning.method} has no low-rank matrices; "
            "choose lora or lora+patch_embed"
        )
    if not shares and len(ranks) != config.clients:
        raise UserError(
            f"finetuning.client_ranks: expected a rank for each of {config.clients} clients, got "
            f"{len(ranks)} ranks; to assign ranks by shares, set finetuning.rank_shares"
        )
    if shares and len(shares) != len(ranks):
        raise UserError(
            f"finetuning.rank_shares: expected a share for each of {len(ranks)} values in "
            f"finetuning.client_ranks, got {len(shares)} shares"
        )
    if shares and not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(
            f"finetuning.rank_shares: expected shares with a sum of 1, got {sum(shares):g}"
        )
    if max(ranks) > tuning.rank:
        raise UserError(
            f"finetuning.client_ranks: expected ranks of at most finetuning.rank {tuning.rank}, "
            f"got {max(ranks)}"
        )


@functools.lru_cache(maxsize=1)
def _dealt(
    ranks: tuple[int, ...], shares: tuple[float, ...], clients: int, seed: int
) -> tuple[int, ...]:
    """Assigns ranks to all clients at random, with the run's seed."""
    deck = [
        rank for rank, part in zip(ranks, quotas(shares, clients), strict=True) for _ in range(part)
    ]
    order = torch.randperm(clients, generator=generator(seed, "ranks"))
    return tuple(deck[i] for i in order.tolist())
