"""Computes all steps of a cipher in one pass over the pixels: y = x[order] ⊕ mask.

In this formula x is a plain image and y its ciphertext. The code of the steps is easy to read but
slow, because each step copies all pixels. All steps together only move the pixels of an image (or
halves of pixels) and flip some of their bits. A few test images are encrypted with the steps, to
find out how pixels move and which bits flip. With the places and bits that were found, a whole
batch of images is encrypted in one pass.

Letters in shapes: B images, P = C·H·W pixels of all channels, U units. A unit is a pixel, or half a
pixel (a nibble) if the halves of a pixel move to different places; so U is P or 2P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIGITS = 7  # hexadecimal digits that number a nibble
PROBES = DIGITS + 1  # probe images needed to find a map


@dataclass(frozen=True)
class PixelMap:
    """A bijection on images that moves units (pixels or halves of pixels) and flips their bits.

    Attributes:
        order: For each of the U units of a ciphertext, the place that the unit has in the plain
            image, int64 (U,).
        mask: The bits to flip after the units have been moved, uint8 (U,).
    """

    order: NDArray[np.int64]
    mask: NDArray[np.uint8]

    def apply(self, images: Tensor) -> Tensor:
        """Moves the units of images, uint8 (B, C, H, W), and flips bits of the units."""
        units = self._units(images).take(self.order, axis=1) ^ self.mask
        return _join(units, images)

    def invert(self, images: Tensor) -> Tensor:
        """Returns the exact inverse of `apply`."""
        units = (self._units(images) ^ self.mask).take(np.argsort(self.order), axis=1)
        return _join(units, images)

    def _units(self, images: Tensor) -> NDArray[np.uint8]:
        """Cuts images into units (pixels or halves of pixels), (B, U)."""
        flat: NDArray[np.uint8] = images.flatten(1).numpy()
        return flat if flat.shape[1] == len(self.order) else _split(flat)


def probe(encrypt: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> PixelMap:
    """Finds the `PixelMap` that gives the same ciphertext as an encryption function.

    A nibble is half a pixel, four bits. All nibbles of an image are numbered. The ciphertext of an
    image of zeros is the mask. In the other test images, every nibble has as its value one
    hexadecimal digit of its own number. The ciphertext of the numbered images, without the mask,
    shows the place from which every nibble came.

    Args:
        encrypt: A function that encrypts uint8 images (B, C, H, W). The function `encrypt` may only
            move nibbles (half pixels) and flip bits.
        image_shape: The shape (C, H, W) of an image.

    Returns:
        The map, whose units are whole pixels if both halves of every pixel stay together.
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
    """Splits pixels (B, P) into nibbles (B, 2P). The upper nibble of each pixel comes first."""
    return np.stack([flat >> 4, flat & 15], axis=-1).reshape(len(flat), 2 * flat.shape[1])


def _join(units: NDArray[np.uint8], like: Tensor) -> Tensor:
    """Joins units (pixels or halves of pixels) into images that have the shape of `like`."""
    whole = units.shape[1] * len(like) == like.numel()
    flat = units if whole else units[:, 0::2] << 4 | units[:, 1::2]
    return torch.from_numpy(np.ascontiguousarray(flat)).reshape(like.shape)
