"""A trial of the correlation attack on natural images: signs and order of the entries of a block.

The attacker has ciphertexts of pixel shuffling and the negative-positive transformation under one
key, and other plain images of the same kind. Block scrambling would change nothing, because the
correlations are those of all blocks together.

Letters in shapes: C channels, H × W pixels, n images, N blocks, D entries of a block.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import quadratic_assignment

from fl_vitlora.attacks.key_search import measures
from fl_vitlora.attacks.key_search.block_statistics import Indices, Matrix, correlations, signs
from fl_vitlora.attacks.key_search.matching import assignment, best_orders
from fl_vitlora.attacks.key_search.prior import pooled, signed_blocks
from fl_vitlora.data.sources import Images
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.keys import SECRET_BYTES

KNOWN = 100  # plain images of the attacker
SMALL = 64  # entries of a block up to which pairs of entries are exchanged, too
STARTS, REPEATS = 4, 20


def from_correlations(
    images: Images, side: int, block_size: int, counts: Sequence[int], seed: int
) -> dict[int, dict[str, float]]:
    """Attacks one new key.

    Args:
        images: Natural images, of which some are known and others are attacked.
        side: The side in pixels to which images are enlarged.
        block_size: The side of a block in pixels.
        counts: Numbers n of ciphertexts to try.
        seed: The seed that chooses the images.

    Returns:
        For each n, the share of the mask that is found, except for one bit, and the share of the
        places that is found, except for a mirror image.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    known, attacked = order[:KNOWN], order[KNOWN : KNOWN + max(counts)]
    plain = correlations(pooled(signed_blocks(images.read(known, side, side), block_size)))
    steps = ("pixel_shuffling", "negative_positive")
    cipher = Cipher(steps=steps, block_size=block_size, image_shape=(3, side, side))
    key = cipher.key(secrets.token_bytes(SECRET_BYTES), "trial")
    ciphertext = cipher.encrypt(images.read(attacked, side, side), key)
    found = {}
    for count in counts:
        seen = correlations(pooled(signed_blocks(ciphertext[:count], block_size)))
        flips = signs(seen)
        entries = order_of_entries(seen * np.outer(flips, flips), plain, seed)
        guess = {
            "negative_positive": torch.from_numpy(flips < 0),
            "pixel_shuffling": torch.from_numpy(entries),
        }
        found[count] = {
            "mask": measures.share_of_mask(guess, key, up_to_all=True),
            "places": measures.share_of_places(guess, key, block_size, up_to_mirrored=True),
        }
    return found


def order_of_entries(seen: Matrix, known: Matrix, seed: int) -> Indices:
    """Returns the order in which the correlations of ciphertext are nearest to those of images.

    Small blocks are searched as in the attack `second_order`. In large blocks it would take hours
    to exchange pairs. There, each result of the fast approximate method (FAQ) is improved by
    assigning each entry to the place whose correlations with all others are nearest.
    """
    generator = np.random.default_rng(seed)
    if len(seen) <= SMALL:
        return best_orders(seen, known, generator)[0]
    best, found = np.inf, np.arange(len(seen))
    for start in ["barycenter"] + ["randomized"] * STARTS:
        options = {"maximize": True, "rng": generator, "P0": start}
        order = quadratic_assignment(seen, known, method="faq", options=options).col_ind
        for _ in range(REPEATS):
            better = assignment(-seen @ known[order])
            if (better == order).all():
                break
            order = better
        cost = float(((seen - known[np.ix_(order, order)]) ** 2).sum())
        if cost < best:
            best, found = cost, np.asarray(order, dtype=np.int64)
    return found
