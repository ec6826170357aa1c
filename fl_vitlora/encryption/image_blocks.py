"""Converts images into blocks and back; the entries are in the order of a ViT's patches.

Letters in shapes: B images, C channels, H × W pixels, p block size, N = (H/p)·(W/p) blocks, D =
C·p² entries a block. Blocks are numbered row by row; the entries of a block are ordered (channel,
y, x), as in the weight of timm's Conv2d patch embedding.
"""

from __future__ import annotations

from torch import Tensor

from fl_vitlora.errors import UserError


def grid(height: int, width: int, block_size: int) -> tuple[int, int]:
    """Returns how many rows and columns of blocks an image has.

    Args:
        height: The height H of the image in pixels.
        width: The width W of the image in pixels.
        block_size: The side p of a block in pixels.

    Returns:
        The number of rows H/p and the number of columns W/p.

    Raises:
        UserError: When the height or the width is not a multiple of the block size.

    Example:
        >>> grid(16, 32, 4)
        (4, 8)
    """
    if height % block_size or width % block_size:
        fitting = [p for p in range(1, min(height, width) + 1) if not (height % p or width % p)]
        nearest = min(fitting, key=lambda p: abs(p - block_size))
        raise UserError(
            f"patch size {block_size} does not divide an image of {height}x{width} pixels; the "
            f"nearest patch size that divides it is {nearest}"
        )
    return height // block_size, width // block_size


def to_blocks(images: Tensor, block_size: int) -> Tensor:
    """Cuts images (B, C, H, W) into blocks (B, N, D)."""
    batch, channels, height, width = images.shape
    rows, columns = grid(height, width, block_size)
    cut = images.reshape(batch, channels, rows, block_size, columns, block_size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * block_size**2)


def from_blocks(blocks: Tensor, height: int, width: int, block_size: int) -> Tensor:
    """Joins blocks (B, N, D) into images (B, C, H, W). This is the inverse of `to_blocks`."""
    rows, columns = grid(height, width, block_size)
    batch, channels = len(blocks), blocks.shape[-1] // block_size**2
    cut = blocks.reshape(batch, rows, columns, channels, block_size, block_size)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
