"""An attack that finds a key shared by many images from their ciphertext alone.

The attacker has ciphertext of block scrambling, pixel shuffling and the negative-positive
transformation under one key. The attacker also has other plain images of the same kind. The attack
finds

1. the signs, from the correlations of entries within blocks (`block_statistics`);
2. the order of entries except for mirror images, by quadratic assignment of these correlations
   (`matching`);
3. the order of blocks: each block is assigned to the place whose normal distribution in plain
   images fits best.

Then the attack exchanges pairs of blocks and pairs of entries as long as the decrypted images
become more likely under a normal distribution of whole plain images. The attack tries both signs
and all mirror images, and returns the most likely key.

Letters in shapes: n images, N blocks, D entries of a block, G groups of equal entries (D/3 for grey
images), M plain images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence

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
from fl_vitlora.attacks.key_search.matching import (
    assignment,
    best_orders,
    entry_order,
)
from fl_vitlora.attacks.key_search.prior import Blocks, Prior, first_of, pooled, signed_blocks
from fl_vitlora.encryption.cipher import CipherKey

ENOUGH = 40  # images from which the likelihood of a key is computed
TRIED = 12  # orders of entries that are improved further; these are the most likely ones


def key_from_ciphertext(
    images: Tensor, prior: Prior, seed: int = 0, *, check: Callable[[], None] = unhurried
) -> CipherKey:
    """Finds the key of the three steps from ciphertext alone.

    Args:
        images: Ciphertext under one key, uint8 (n, C, H, W).
        prior: The attacker's knowledge of other plain images of the same kind.
        seed: Seed of the random starts.
        check: A function that is called from time to time, and that can raise an error to end the
            search.

    Returns:
        A guess of the key, in the format of `Cipher.decrypt` for the three steps in the default
        order. Equal channels cannot be distinguished, so their order is arbitrary.
    """
    blocks = signed_blocks(images, prior.block_size)
    seen = correlations(pooled(blocks))
    flips = signs(seen)
    seen *= np.outer(flips, flips)
    groups = nearest_entries(seen, [len(group) for group in prior.groups])
    first = first_of(groups)
    generator = np.random.default_rng(seed)
    orders = best_orders(seen[np.ix_(first, first)], prior.correlation, generator, check=check)
    plain = (blocks * flips)[:ENOUGH, :, first]
    sign, entries, places = most_likely(plain, orders, prior, check)
    return {
        "block_scrambling": torch.from_numpy(places),
        "pixel_shuffling": torch.from_numpy(entry_order(groups, prior.groups, entries)),
        "negative_positive": torch.from_numpy(sign * flips < 0),
    }


def most_likely(
    plain: Blocks,
    orders: Sequence[Indices],
    prior: Prior,
    check: Callable[[], None] = unhurried,
) -> tuple[int, Indices, Indices]:
    """Chooses the most likely common sign, order of entries and order of blocks.

    Args:
        plain: Blocks whose inverted entries were inverted back, (n, N, G). One sign, which all
            entries share, is still unknown.
        orders: Orders of entries; their mirror images are tried as well.
        prior: The attacker's prior, from plain images.
        check: A function that is called from time to time, and that can raise an error to end the
            search.

    Returns:
        The sign, the order of entries, and the order of blocks.
    """
    begun = []
    for sign in (1, -1):
        for order in {tuple(image[order]) for order in orders for image in prior.mirrored()}:
            check()
            entries = np.array(order)
            places = order_of_blocks(sign * plain, entries, prior)
            begun.append((_likelihood(sign * plain, entries, places, prior), sign, entries, places))
    begun.sort(key=lambda one: -one[0])
    found = [(sign, *improved(sign * plain, e, p, prior, check)) for _, sign, e, p in begun[:TRIED]]
    sign, entries, places, _ = max(found, key=lambda one: one[-1])
    return sign, entries, places


def order_of_blocks(plain: Blocks, entries: Indices, prior: Prior) -> Indices:
    """Assigns each block to the place where plain images are most similar to it.

    Args:
        plain: Blocks whose inverted entries were inverted back, (n, N, G).
        entries: For each entry, the place within the block from which it comes.
        prior: The attacker's prior, from plain images.

    Returns:
        For each block, the place from which it comes.
    """
    turned = plain[:, :, np.argsort(entries)]
    costs = np.stack([-place.likelihood(turned).sum(axis=0) for place in prior.places], axis=1)
    return assignment(costs)


def improved(
    plain: Blocks,
    entries: Indices,
    places: Indices,
    prior: Prior,
    check: Callable[[], None] = unhurried,
) -> tuple[Indices, Indices, float]:
    """Improves the orders of entries and of blocks by exchanging pairs.

    Args:
        plain: Blocks whose inverted entries were inverted back, (n, N, G).
        entries: For each entry, the place within the block from which it comes.
        places: For each block, the place from which it comes.
        prior: The attacker's prior, from plain images.
        check: A function that is called before each exchange, and that can raise an error to end
            the search.

    Returns:
        The order of entries, the order of blocks, and the log-likelihood.
    """

    def of_places(orders: Indices) -> Matrix:
        check()
        there = plain[:, :, np.argsort(entries)]
        return _likelihoods([there[:, np.argsort(order)] for order in orders], prior)

    def of_entries(orders: Indices) -> Matrix:
        check()
        there = plain[:, np.argsort(places)]
        return _likelihoods([there[:, :, np.argsort(order)] for order in orders], prior)

    before, best = -math.inf, -sys.float_info.max
    while best > before:
        before = best
        places, best = by_exchanges(places, of_places)
        entries, best = by_exchanges(entries, of_entries)
    return entries, places, best


def by_exchanges(order: Indices, score: Callable[[Indices], Matrix]) -> tuple[Indices, float]:
    """Exchanges the pair that raises the score most, until no exchange raises the score.

    Args:
        order: A permutation, (D,).
        score: A function that scores m permutations, (m, D); a higher score is better.

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
    """Returns the log-likelihood of images that are decrypted with two orders."""
    decrypted = plain[:, np.argsort(places)][:, :, np.argsort(entries)]
    return float(_likelihoods([decrypted], prior)[0])


def _likelihoods(candidates: Sequence[Blocks], prior: Prior) -> Matrix:
    """Returns the log-likelihood of all images of each candidate together, (m,)."""
    flat = np.stack([blocks.reshape(len(blocks), -1) for blocks in candidates])
    together: Matrix = prior.whole.likelihood(flat).sum(axis=-1)
    return together
