"""Any cipher made of permutations and inversions, as one look-up: y = x[order] ⊕ mask.

Steps are written for the reader, one copy of all pixels each. But whatever their number and order,
together they move every pixel of an image somewhere and perhaps flip its bits. Both are known from
what the steps make of a few probes; then a whole batch is encrypted in a single pass.

B images, P = C·H·W pixels of all channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BYTES = 4  # of a pixel's number


@dataclass(frozen=True)
class PixelMap:
    """A bijection on images.

    Attributes:
        order: int64 (P,), from where each pixel comes.
        mask: uint8 (P,), the bits that are flipped then.
    """

    order: NDArray[np.int64]
    mask: NDArray[np.uint8]

    def apply(self, images: Tensor) -> Tensor:
        """Maps uint8 images (B, C, H, W)."""
        flat = images.reshape(len(images), len(self.order)).numpy()
        return torch.from_numpy(flat.take(self.order, axis=1) ^ self.mask).reshape(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """Undoes `apply` bit by bit."""
        flat = images.reshape(len(images), len(self.order)).numpy() ^ self.mask
        return torch.from_numpy(flat.take(np.argsort(self.order), axis=1)).reshape(images.shape)


def probe(encrypt: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> PixelMap:
    """Finds the map that a composition of permutations and inversions is.

    An image of zeros shows the mask. Images whose pixels hold the bytes of their own numbers show,
    the mask taken off, where every pixel has come from.

    Args:
        encrypt: The composition, on uint8 images (B, C, H, W).
        image_shape: (C, H, W).

    Returns:
        The map.
    """
    pixels = int(np.prod(image_shape))
    numbers = torch.arange(pixels)
    planes = [torch.zeros_like(numbers), *(numbers >> 8 * byte & 255 for byte in range(BYTES))]
    probes = torch.stack(planes).to(torch.uint8).view(-1, *image_shape)
    seen = encrypt(probes).reshape(-1, pixels)
    mask, found = seen[0], (seen[1:] ^ seen[0]).to(torch.int64)
    order = sum((found[byte] << 8 * byte for byte in range(BYTES)), torch.zeros_like(numbers))
    return PixelMap(order=order.numpy(), mask=mask.numpy())
