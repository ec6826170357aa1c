"""Finds how any cipher moves and inverts pixels, from pairs of a plain image and its ciphertext.

A unit is a pixel of one channel, or half of such a pixel. A unit of ciphertext can come only from a
unit with the same values in all pairs, perhaps inverted. Units that are equal in all pairs cannot
be distinguished; their order is arbitrary.

Letters in shapes: Q pairs, U units of an image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.attacks.key_search.from_pairs import Bytes, common_colours, matched
from fl_vitlora.encryption.pixel_map import PixelMap


def map_from_pairs(plain: Tensor, ciphertext: Tensor, *, halves: bool = False) -> PixelMap:
    """Finds how a cipher moves the units of an image, and which units it inverts.

    Args:
        plain: Plain images, uint8 (Q, C, H, W).
        ciphertext: The ciphertext of these images, all encrypted under one key, (Q, C, H, W).
        halves: True if the cipher moves halves of pixels.

    Returns:
        The map from plain images to ciphertext.
    """
    white = np.uint8(15) if halves else np.uint8(255)
    seen = [_units(images, halves=halves) for images in (plain, ciphertext)]
    turned = [_is_turned(units, white) for units in seen]
    upright = [units ^ (turn * white) for units, turn in zip(seen, turned, strict=True)]
    colours = common_colours(upright[0].T, upright[1].T)
    order = matched(*colours)
    return PixelMap(order=order, mask=(turned[0][order] != turned[1]).astype(np.uint8) * white)


def _units(images: Tensor, *, halves: bool) -> Bytes:
    """Returns the units of images, (Q, U)."""
    flat: Bytes = images.flatten(1).numpy()
    if not halves:
        return flat
    return np.stack([flat >> 4, flat & 15], axis=-1).reshape(len(flat), -1)


def _is_turned(units: Bytes, white: np.uint8) -> NDArray[np.bool_]:
    """Returns True for the units that are bright in the first pair, (U,)."""
    turned: NDArray[np.bool_] = units[0] > white // 2
    return turned
