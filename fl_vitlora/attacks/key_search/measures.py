"""Measures of a guessed key: the share that is correct, and the share that is correct by chance.

Letters in shapes: D = C·p² entries of a block, p block size, N blocks.
"""

from __future__ import annotations

import numpy as np
import torch

from fl_vitlora.attacks.key_search.matching import mirror_images
from fl_vitlora.encryption.cipher import CipherKey

DRAWS = 20_000


def share_of_mask(guess: CipherKey, truth: CipherKey, *, up_to_all: bool = False) -> float:
    """Returns the share of the negative-positive mask that is correct.

    Args:
        guess: The attacker's guess.
        truth: The true key.
        up_to_all: True if a mask that is wrong everywhere counts as correct.
    """
    name = "negative_positive"
    share = float((guess[name] == truth[name]).double().mean())
    return max(share, 1 - share) if up_to_all else share


def share_of_places(
    guess: CipherKey, truth: CipherKey, block_size: int, *, up_to_mirrored: bool = False
) -> float:
    """Returns the share of entries whose place within the block is correct, in any channel.

    Args:
        guess: The attacker's guess.
        truth: The true key.
        block_size: Block size p.
        up_to_mirrored: True if the best of all mirrored and rotated orders is compared with the
            key.
    """
    ours, theirs = (key["pixel_shuffling"].numpy() % block_size**2 for key in (guess, truth))
    images = mirror_images(block_size, block_size) if up_to_mirrored else [np.arange(block_size**2)]
    return max(float((image[ours] == theirs).mean()) for image in images)


def share_of_blocks(guess: CipherKey, truth: CipherKey) -> float:
    """Returns the share of blocks whose origin is correct."""
    name = "block_scrambling"
    return float((guess[name] == truth[name]).double().mean())


def chance_of_places(block_size: int, *, up_to_mirrored: bool = False) -> float:
    """Returns the mean share of correct places in a random order; see `share_of_places`."""
    if not up_to_mirrored:
        return 1 / block_size**2
    generator, places = np.random.default_rng(0), np.arange(block_size**2)
    orders = generator.permuted(np.tile(places, (DRAWS, 1)), axis=1)
    images = np.stack(list(mirror_images(block_size, block_size)))
    right = (images[:, orders] == places).mean(axis=-1)
    return float(right.max(axis=0).mean())


def chance_of_mask(entries: int) -> float:
    """Returns the mean share of a mask that a random mask or its inverse has right."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.randint(2, (DRAWS, entries), generator=generator).double().mean(dim=1)
    return float(torch.maximum(shares, 1 - shares).mean())
