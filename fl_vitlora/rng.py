"""Random generators derived from one seed by a path of names.

Every source of chance in a run has its own path (``"sampling", round``; ``"batches", round,
client``), so that none depends on how often, in which order or in which process another one was
used. That is what makes a run the same bits on one worker and on two.

These generators are for experiments. Keys never come from here; see `encryption.keys`.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Derives an independent 63-bit seed for one purpose.

    Args:
        seed: The run's seed.
        *path: What the generator is for, from the general to the particular.

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


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Makes the CPU generator of one purpose; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))
