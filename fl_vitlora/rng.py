"""Random generators derived from one seed by a path of names.

Each use of random numbers in a run has its own path: for example ``"sampling", round`` for the
choice of clients, and ``"batches", round, client`` for the order of images. The numbers of one path
do not depend on other paths, on the order of use, or on the process. Therefore a run gives the same
bits with one worker process as with many.

These generators are for experiments only. Secret keys are never drawn from these generators; see
`encryption.keys`.
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
        seed: The seed of the run.
        *path: Words and numbers that name the purpose, for example "batches", the round and the
            client.

    Returns:
        A seed in [0, 2**63), which is the same on every machine.

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
    """Draws some clients at random, and assigns a kind of behaviour to each of these clients.

    This function decides, for example, which clients are hostile, and what each hostile client
    does.

    Args:
        kinds: The kinds, which the drawn clients get in turn. `kinds` may be empty only if no
            client is drawn.
        chosen: The number of clients that are drawn.
        clients: The number of all clients.
        draw: The generator that chooses the clients. If two calls begin with generators in the same
            state, the call with the larger `chosen` draws all clients of the other call, and
            further clients.

    Returns:
        The sorted numbers of the clients of each kind, by kind.

    Example:
        >>> {kind: len(who) for kind, who in deal("ab", 3, 20, generator(0, "deal")).items()}
        {'a': 2, 'b': 1}
    """
    if not chosen:
        return {}  # saves time: each message calls `deal`, also with 10,000 clients
    order = torch.randperm(clients, generator=draw).tolist()
    dealt: dict[T, list[int]] = {}
    for client, kind in zip(order[:chosen], itertools.cycle(kinds), strict=False):
        dealt.setdefault(kind, []).append(client)
    return {kind: sorted(who) for kind, who in dealt.items()}


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Returns a CPU generator for the purpose that `path` names, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python and NumPy in a ``with`` block; restores them after it.

    Use `seeded` around library code that draws from the global generators.

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
