"""Any cipher made of permutations and inversions, as one look-up: y = x[order] ⊕ mask.

Steps are written for the reader, one copy of all pixels each. But whatever their number and order,
together they move every pixel of an image, or every half of one, somewhere and perhaps flip its
bits. Both are known from what the steps make of a few probes; then a whole batch is encrypted in a
single pass.

B images, P = C·H·W pixels of all channels, U units: P, or 2P where halves of pixels part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIGITS = 7  # hexadecimal, of the number of a nibble
PROBES = DIGITS + 1  # images that a map costs


@dataclass(frozen=True)
class PixelMap:
    """A bijection on images.

    Attributes:
        order: int64 (U,), from where each unit comes.
        mask: uint8 (U,), the bits that are flipped then.
    """

    order: NDArray[np.int64]
    mask: NDArray[np.uint8]

    def apply(self, images: Tensor) -> Tensor:
        """Maps uint8 images (B, C, H, W)."""
        units = self._units(images).take(self.order, axis=1) ^ self.mask
        return _join(units, images)

    def invert(self, images: Tensor) -> Tensor:
        """Undoes `apply` bit by bit."""
        units = (self._units(images) ^ self.mask).take(np.argsort(self.order), axis=1)
        return _join(units, images)

    def _units(self, images: Tensor) -> NDArray[np.uint8]:
        """Cuts images into units (B, U)."""
        flat: NDArray[np.uint8] = images.flatten(1).numpy()
        return flat if flat.shape[1] == len(self.order) else _split(flat)


def probe(encrypt: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> PixelMap:
    """Finds the map that a composition of permutations and inversions is.

    An image of zeros shows the mask. Images whose nibbles hold the digits of their own numbers,
    with the mask taken off, show where every nibble has come from.

    Args:
        encrypt: The composition, on uint8 images (B, C, H, W).
        image_shape: (C, H, W).

    Returns:
        The map, of whole pixels if no pixel's halves part.
    """
    numbers = np.arange(2 * int(np.prod(image_shape)))
    digits = [numbers >> 4 * digit & 15 for digit in range(DIGITS)]
    planes = np.stack([np.zeros_like(numbers), *digits]).astype(np.uint8)
    shape = torch.empty((PROBES, *image_shape), dtype=torch.uint8)
    seen = _split(encrypt(_join(planes, shape)).flatten(1).numpy())
    mask, found = seen[0], (seen[1:] ^ seen[0]).astype(np.int64)
    order = sum((found[digit] << 4 * digit for digit in range(DIGITS)), np.zeros_like(numbers))
    upper, lower = order[0::2], order[1::2]
    if (upper % 2 == 0).all() and (lower == upper + 1).all():
        return PixelMap(order=upper // 2, mask=mask[0::2] << 4 | mask[1::2])
    return PixelMap(order=order, mask=mask)


def _split(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cuts pixels (B, P) into nibbles (B, 2P), the upper one of each first."""
    return np.stack([flat >> 4, flat & 15], axis=-1).reshape(len(flat), 2 * flat.shape[1])


def _join(units: NDArray[np.uint8], like: Tensor) -> Tensor:
    """Puts units together to images of the shape of others."""
    whole = units.shape[1] * len(like) == like.numel()
    flat = units if whole else units[:, 0::2] << 4 | units[:, 1::2]
    return torch.from_numpy(np.ascontiguousarray(flat)).reshape(like.shape)
