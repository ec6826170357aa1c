"""The images that an attack recovers, beside the images that they should be.

Letters in shapes: n images, C channels, H × W pixels, N patches, D entries of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_vitlora.attacks.similarity import WHITE, structural_similarity
from fl_vitlora.attacks.truth import Owned
from fl_vitlora.encryption.image_blocks import from_blocks

Pictures = Mapping[str, Tensor]  # the name of a column, and its images (n, C, H, W) in [0, 255]
MOST = 6  # images of a column
PLAIN, CIPHERTEXT, FOUND = "plain image", "ciphertext", "recovered"


def beside(owned: Owned, found: Tensor, first: int = 0) -> Pictures:
    """Returns recovered images beside the plain images and ciphertexts of a client.

    Args:
        owned: The data of the client.
        found: The recovered images, in the order of the images of the client, (n, C, H, W).
        first: The place of the first recovered image among the images of the client, from 0.
    """
    count = min(MOST, len(found))
    own = slice(first, first + count)
    return {PLAIN: owned.plain[own], CIPHERTEXT: owned.ciphertext[own], FOUND: found[:count]}


def beside_nearest(owned: Owned, found: Tensor, *, plain: bool) -> Pictures:
    """Returns recovered images, each beside the image of a client that is most similar to it.

    Args:
        owned: The data of the client.
        found: The recovered images, in any order, (n, C, H, W).
        plain: True if the attack looks for plain images, and not for ciphertexts.
    """
    own, found = owned.plain if plain else owned.ciphertext, found[:MOST]
    near = [int(structural_similarity(one.expand(own.shape), own).argmax()) for one in found]
    places = torch.tensor(near, dtype=torch.int64)
    return {PLAIN: owned.plain[places], CIPHERTEXT: owned.ciphertext[places], FOUND: found}


def from_patches(patches: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """Returns images in [0, 255], (n, C, H, W), of patches as a model reads them.

    Args:
        patches: The patches in [-1, 1], (n, N, D). Values outside of the interval are cut off.
        size: The height and the width of an image in pixels.
        patch_size: The side of a patch in pixels.
    """
    pixels = ((patches + 1) / 2 * WHITE).clamp(0, WHITE)
    return from_blocks(pixels, size[0], size[1], patch_size)
