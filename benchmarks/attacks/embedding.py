"""Finds a shared key from how training changes the aggregated patch embedding.

The gradient of the patch embedding is dL/dE = Σ δᵢ·xᵢᵀ: every column is a sum over the pixels of
one entry. So the columns of a change of E correlate with each other as the pixels of ciphertext do,
and the attacker needs neither ciphertext nor plain images: it is enough that in all images pixels
are the more alike, the nearer they are. What the attacker sees is the sum of all clients, so that
secure aggregation does not stand against this.

Signs are found up to one for all entries, the order up to the mirror images of a block, and the
order of blocks not at all.

W width of the model, D = C·p² entries a patch, p patch size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks.matching import best_orders, entry_order
from benchmarks.attacks.second_order import Indices, Matrix, correlations, nearest_entries, signs
from fl_vitlora.encryption.cipher import CipherKey

OTHER_CHANNEL = 0.9  # how alike two channels of one pixel are taken to be


def correlation_of_steps(steps: Sequence[Tensor]) -> Matrix:
    """Computes how the columns of a patch embedding's changes correlate, the mean over changes.

    Args:
        steps: Changes, of single rounds or of many, (W, D) each.

    Returns:
        (D, D).
    """
    found = [correlations(step.double().numpy(), centred=False) for step in steps]
    return np.asarray(np.mean(found, axis=0))


def nearness(block_size: int, channels: int) -> Matrix:
    """Says how alike the entries of a block are in any images: e^(-distance in pixels).

    Args:
        block_size: p.
        channels: C; two channels of a pixel are `OTHER_CHANNEL` times as alike.

    Returns:
        (D, D), D in the order (channel, y, x).
    """
    places = np.arange(block_size**2)
    y, x = np.divmod(places, block_size)
    within = np.exp(-np.hypot(y[:, None] - y, x[:, None] - x))
    between = OTHER_CHANNEL + (1 - OTHER_CHANNEL) * np.eye(channels)
    return np.kron(between, within)


def key_from_embedding(
    steps: Sequence[Tensor], block_size: int, *, grey: bool, seed: int = 0
) -> CipherKey:
    """Finds the signs and the order of entries from changes of the patch embedding; see the module.

    Args:
        steps: Changes of the aggregated patch embedding, (W, D) each.
        block_size: p.
        grey: Whether the images are known to have three equal channels.
        seed: Seed of the random starts.

    Returns:
        A guess of two of the three keys, as `Cipher` takes them.
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
    order = best_orders(seen[np.ix_(first, first)], known, generator)[0]
    origins = [_entries_of(origin, places, alike) for origin in range(len(known))]
    return {
        "pixel_shuffling": torch.from_numpy(entry_order(groups, origins, order)),
        "negative_positive": torch.from_numpy(flips < 0),
    }


def _entries_of(origin: int, places: int, alike: int) -> Indices:
    """Lists the entries that a group stands for: all channels of a place, or itself."""
    return np.array([origin + channel * places for channel in range(alike)])
