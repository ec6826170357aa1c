"""Random generators derived from one seed by a path of names.

Every source of randomness in a run has its own path (``"sampling", round``; ``"batches", round,
client``). So no source depends on how often, in which order or in which process another one was
used. This is why a run gives the same bits on one worker and on two.

These generators are for experiments. Keys never come from here; see `encryption.keys`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def derive_seed(seed: int, *path: str | int) -> int:
    """Derives an independent 63-bit seed for one purpose.

    Args:
        seed: The run's seed.
        *path: Words and numbers that name the use of the generator, for example "batches", the
            round and the client.

    Returns:
        A number in [0, 2**63), the same on every machine.

    Example:
        >>> derive_seed(0, "sampling", 1) == derive_seed(0, "sampling", 1)
        True
        >>> derive_seed(0, "sampling", 1) == derive_seed(0, "sampling", 2)
        False
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def deal(
    kinds: Sequence[T], chosen: int, clients: int, draw: torch.Generator
) -> dict[T, list[int]]:
    """Draws some of the clients and gives them the kinds in turn.

    Args:
        kinds: The kinds to deal; they may be empty only if no client is drawn.
        chosen: The number of clients that are drawn.
        clients: The number of all clients.
        draw: The generator that chooses the clients. With the same generator state, a larger draw
            contains the smaller one.

    Returns:
        The sorted client numbers of each kind.

    Example:
        >>> {kind: len(who) for kind, who in deal("ab", 3, 20, generator(0, "deal")).items()}
        {'a': 2, 'b': 1}
    """
    if not chosen:
        return {}  # fast, since every message calls this and there may be ten thousand clients
    order = torch.randperm(clients, generator=draw).tolist()
    dealt: dict[T, list[int]] = {}
    for client, kind in zip(order[:chosen], itertools.cycle(kinds), strict=False):
        dealt.setdefault(kind, []).append(client)
    return {kind: sorted(who) for kind, who in dealt.items()}


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Returns the CPU generator of one purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python and NumPy within a block, and restores them after it.

    Use it around library code that draws from these generators.

    Args:
        seed: A seed from `derive_seed`.

    Example:
        >>> with seeded(3):
        ...     first = random.random(), float(np.random.normal())
        >>> with seeded(3):
        ...     first == (random.random(), float(np.random.normal()))
        True
    """
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])  # NumPy takes numbers of 32 bits
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
