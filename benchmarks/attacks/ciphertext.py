"""Finds a key that many images share from their ciphertext alone.

The attacker has ciphertext of block scrambling, pixel shuffling and the negative-positive
transformation under one key, and plain images of the same kind that are not among those. It finds

1. the signs, from the correlations of entries within blocks (`second_order`);
2. the order of entries, by quadratic assignment of these correlations (`matching`), up to mirror
   images;
3. the order of blocks, by assigning to each block the place whose normal distribution in plain
   images fits best;

and then exchanges pairs of blocks and pairs of entries as long as the decrypted images become more
likely under a normal distribution of whole plain images. Both signs and all mirror images are tried
so, and the most likely key is returned.

n images, N blocks, D entries a block, G groups of equal entries (D/3 of grey images), M plain
images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.attacks.matching import (
    assignment,
    best_orders,
    entry_order,
    mirror_images,
    with_channels,
)
from benchmarks.attacks.second_order import (
    Indices,
    Matrix,
    correlations,
    equal_entries,
    nearest_entries,
    signs,
)
from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.encryption.image_blocks import to_blocks

Blocks = NDArray[np.float64]
RIDGE = 0.02  # added to every variance, of pixels in [-1, 1]
ENOUGH = 40  # images that tell how likely a key is
TRIED = 12  # orders of entries that are improved, of those that look best


def signed_blocks(images: Tensor, block_size: int) -> Blocks:
    """Cuts uint8 images into blocks of pixels in [-1, 1], (n, N, D)."""
    return to_blocks(images, block_size).numpy().astype(np.float64) / 127.5 - 1


@dataclass(frozen=True)
class Normal:
    """A normal distribution.

    Attributes:
        mean: (D,).
        precision: The inverse of the covariance, (D, D).
        log_volume: The logarithm of the covariance's determinant.
    """

    mean: Matrix
    precision: Matrix
    log_volume: float

    @classmethod
    def of(cls, samples: Matrix) -> Self:
        """Fits one to samples (M, D)."""
        covariance = np.cov(samples.T) + RIDGE * np.eye(samples.shape[1])
        volume = float(np.linalg.slogdet(covariance)[1])
        precision: Matrix = np.linalg.inv(covariance).astype(np.float64)
        return cls(samples.mean(axis=0), precision, volume)

    def likelihood(self, samples: Matrix) -> Matrix:
        """Computes the log-likelihood of samples (..., D), up to a constant."""
        away = samples - self.mean
        distance: Matrix = ((away @ self.precision) * away).sum(axis=-1)
        return -0.5 * (distance + self.log_volume)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the attacker knows of plain images.

    Attributes:
        groups: The entries that are always equal, G groups.
        correlation: Of one entry of each group, within blocks, (G, G).
        places: The distribution of each block, N of them over G entries.
        whole: The distribution of images, over N·G.
        block_size: p.
        channels: C.
    """

    groups: Sequence[Indices]
    correlation: Matrix
    places: Sequence[Normal]
    whole: Normal
    block_size: int
    channels: int

    @classmethod
    def of(cls, images: Tensor, block_size: int) -> Self:
        """Learns it from plain images, uint8 (M, C, H, W)."""
        blocks = signed_blocks(images, block_size)
        groups = equal_entries(correlations(_pooled(blocks)))
        blocks = blocks[:, :, _first(groups)]
        return cls(
            groups=groups,
            correlation=correlations(_pooled(blocks)),
            places=[Normal.of(blocks[:, place]) for place in range(blocks.shape[1])],
            whole=Normal.of(blocks.reshape(len(blocks), -1)),
            block_size=block_size,
            channels=images.shape[1],
        )

    def mirrored(self) -> Iterator[Indices]:
        """Yields the mirror images of a block as orders of its groups, the first as it is."""
        number = {int(entry): g for g, group in enumerate(self.groups) for entry in group}
        for image in mirror_images(self.block_size, self.block_size):
            entries = with_channels(image, self.channels)
            yield np.array([number[int(entries[entry])] for entry in _first(self.groups)])


def key_from_ciphertext(images: Tensor, prior: Prior, seed: int = 0) -> CipherKey:
    """Finds the key of the three steps from ciphertext alone; see the module.

    Args:
        images: Ciphertext under one key, uint8 (n, C, H, W).
        prior: Of other, plain images of the kind.
        seed: Seed of the random starts.

    Returns:
        A guess, as `Cipher.decrypt` takes it for the three steps in the default order. Among equal
        channels it cannot tell which is which, and takes any.
    """
    blocks = signed_blocks(images, prior.block_size)
    seen = correlations(_pooled(blocks))
    flips = signs(seen)
    seen *= np.outer(flips, flips)
    groups = nearest_entries(seen, [len(group) for group in prior.groups])
    first = _first(groups)
    generator = np.random.default_rng(seed)
    orders = best_orders(seen[np.ix_(first, first)], prior.correlation, generator)
    plain = (blocks * flips)[:ENOUGH, :, first]
    sign, entries, places = most_likely(plain, orders, prior)
    return {
        "block_scrambling": torch.from_numpy(places),
        "pixel_shuffling": torch.from_numpy(entry_order(groups, prior.groups, entries)),
        "negative_positive": torch.from_numpy(sign * flips < 0),
    }


def most_likely(
    plain: Blocks, orders: Sequence[Indices], prior: Prior
) -> tuple[int, Indices, Indices]:
    """Chooses the sign of all, and the orders of entries and of blocks, by their likelihood.

    Args:
        plain: Blocks whose signs are taken off but for one of all, (n, N, G).
        orders: Of entries; their mirror images are tried as well.
        prior: The attacker's prior, from plain images.

    Returns:
        The sign, the order of entries, and the order of blocks.
    """
    begun = []
    for sign in (1, -1):
        for order in {tuple(image[order]) for order in orders for image in prior.mirrored()}:
            entries = np.array(order)
            places = order_of_blocks(sign * plain, entries, prior)
            begun.append((_likelihood(sign * plain, entries, places, prior), sign, entries, places))
    begun.sort(key=lambda one: -one[0])
    found = [(sign, *improved(sign * plain, e, p, prior)) for _, sign, e, p in begun[:TRIED]]
    sign, entries, places, _ = max(found, key=lambda one: one[-1])
    return sign, entries, places


def order_of_blocks(plain: Blocks, entries: Indices, prior: Prior) -> Indices:
    """Assigns each block the place where plain images are most like it.

    Args:
        plain: Blocks with their signs taken off, (n, N, G).
        entries: For each entry the place within the block that it comes from.
        prior: The attacker's prior, from plain images.

    Returns:
        For each block the place that it comes from.
    """
    turned = plain[:, :, np.argsort(entries)]
    costs = np.stack([-place.likelihood(turned).sum(axis=0) for place in prior.places], axis=1)
    return assignment(costs)


def improved(
    plain: Blocks, entries: Indices, places: Indices, prior: Prior
) -> tuple[Indices, Indices, float]:
    """Improves the orders of entries and of blocks by exchanges.

    Args:
        plain: Blocks with their signs taken off, (n, N, G).
        entries: For each entry the place within the block that it comes from.
        places: For each block the place that it comes from.
        prior: The attacker's prior, from plain images.

    Returns:
        The order of entries, the order of blocks, and the log-likelihood.
    """

    def of_places(orders: Indices) -> Matrix:
        there = plain[:, :, np.argsort(entries)]
        return _likelihoods([there[:, np.argsort(order)] for order in orders], prior)

    def of_entries(orders: Indices) -> Matrix:
        there = plain[:, np.argsort(places)]
        return _likelihoods([there[:, :, np.argsort(order)] for order in orders], prior)

    before, best = -math.inf, -sys.float_info.max
    while best > before:
        before = best
        places, best = by_exchanges(places, of_places)
        entries, best = by_exchanges(entries, of_entries)
    return entries, places, best


def by_exchanges(order: Indices, score: Callable[[Indices], Matrix]) -> tuple[Indices, float]:
    """Exchanges the pair that raises a score most, until none does.

    Args:
        order: A permutation (D,).
        score: Of many permutations (m, D), the higher the better.

    Returns:
        The improved permutation, and its score.

    Example:
        >>> by_exchanges(np.array([2, 1, 0]), lambda orders: -abs(orders - np.arange(3)).sum(1))
        (array([0, 1, 2]), 0.0)
    """
    best = float(score(order[None])[0])
    while True:
        orders = np.stack(list(_exchanged(order)))
        scores = score(orders)
        top = int(scores.argmax())
        if scores[top] <= best:
            return order, best
        order, best = orders[top], float(scores[top])


def _exchanged(order: Indices) -> Iterator[Indices]:
    """Yields a permutation with each pair of its entries exchanged."""
    for a in range(len(order)):
        for b in range(a):
            other = order.copy()
            other[[a, b]] = order[[b, a]]
            yield other


def _likelihood(plain: Blocks, entries: Indices, places: Indices, prior: Prior) -> float:
    """Computes how likely images are, decrypted by an order of entries and one of blocks."""
    decrypted = plain[:, np.argsort(places)][:, :, np.argsort(entries)]
    return float(_likelihoods([decrypted], prior)[0])


def _likelihoods(candidates: Sequence[Blocks], prior: Prior) -> Matrix:
    """Computes how likely each candidate's images are together, (m,)."""
    flat = np.stack([blocks.reshape(len(blocks), -1) for blocks in candidates])
    together: Matrix = prior.whole.likelihood(flat).sum(axis=-1)
    return together


def _pooled(blocks: Blocks) -> Matrix:
    """Takes all blocks of all images for samples of one block, (n·N, D)."""
    return blocks.reshape(-1, blocks.shape[-1])


def _first(groups: Sequence[Indices]) -> Indices:
    return np.array([group[0] for group in groups])
