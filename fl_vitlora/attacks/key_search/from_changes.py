"""An attack that finds a shared key from the change of the aggregated patch embedding in training.

The gradient of the patch embedding is dL/dE = Σ δᵢ·xᵢᵀ: every column is a sum over the pixels of
one entry. So the columns of a change of E are correlated like the pixels of ciphertext. The
attacker needs neither ciphertext nor plain images. The attack uses only one fact: in any image,
pixels near each other are more similar than distant pixels. Secure aggregation does not prevent the
attack, because the attack needs only the sum over all clients.

The signs are found except for one common sign of all entries. The order of entries is found except
for the mirror images of a block. The order of blocks is not found.

Letters in shapes: W width of the model, D = C·p² entries of a patch, p patch size, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.attacks.clock import unhurried
from fl_vitlora.attacks.key_search.block_statistics import (
    Indices,
    Matrix,
    correlations,
    nearest_entries,
    signs,
)
from fl_vitlora.attacks.key_search.matching import best_orders, entry_order
from fl_vitlora.encryption.cipher import CipherKey

OTHER_CHANNEL = 0.9  # assumed correlation of two channels of one pixel


def correlation_of_steps(steps: Sequence[Tensor]) -> Matrix:
    """Returns the correlations of the columns of changes, averaged over the changes.

    Args:
        steps: Changes of the patch embedding, in one or more rounds, (W, D) each.

    Returns:
        The mean correlation matrix, (D, D).
    """
    found = [correlations(step.double().numpy(), centred=False) for step in steps]
    return np.asarray(np.mean(found, axis=0))


def nearness(block_size: int, channels: int) -> Matrix:
    """Returns a model of the correlations in images of any kind: e^(-distance in pixels).

    Args:
        block_size: Block size p.
        channels: Number C of channels. Entries of different channels have `OTHER_CHANNEL` times
            the correlation of entries of one channel.

    Returns:
        The correlation matrix, (D, D), with entries in the order (channel, y, x).
    """
    places = np.arange(block_size**2)
    y, x = np.divmod(places, block_size)
    within = np.exp(-np.hypot(y[:, None] - y, x[:, None] - x))
    between = OTHER_CHANNEL + (1 - OTHER_CHANNEL) * np.eye(channels)
    return np.kron(between, within)


def key_from_embedding(
    steps: Sequence[Tensor],
    block_size: int,
    *,
    grey: bool,
    seed: int = 0,
    check: Callable[[], None] = unhurried,
) -> CipherKey:
    """Finds the signs and the order of entries from changes of the patch embedding.

    Args:
        steps: Changes of the aggregated patch embedding, (W, D) each.
        block_size: Block size p.
        grey: True if the images are known to have three equal channels.
        seed: Seed of the random starts.
        check: A function that is called from time to time, and that can raise an error to end the
            search.

    Returns:
        A guess of the keys of pixel shuffling and of the negative-positive transformation, in the
        format of `Cipher`.
    """
    seen = correlation_of_steps(steps)
    flips = signs(seen)
    seen *= np.outer(flips, flips)
    entries, places = len(seen), block_size**2
    channels = entries // places
    alike = channels if grey else 1
    groups = nearest_entries(seen, [alike] * (entries // alike))
    first = np.array([group[0] for group in groups])
    known = nearness(block_size, channels // alike)
    generator = np.random.default_rng(seed)
    order = best_orders(seen[np.ix_(first, first)], known, generator, check=check)[0]
    origins = [_entries_of(origin, places, alike) for origin in range(len(known))]
    return {
        "pixel_shuffling": torch.from_numpy(entry_order(groups, origins, order)),
        "negative_positive": torch.from_numpy(flips < 0),
    }


def _entries_of(origin: int, places: int, alike: int) -> Indices:
    """Returns the entries of a group: one entry, or all channels of a place."""
    return np.array([origin + channel * places for channel in range(alike)])
