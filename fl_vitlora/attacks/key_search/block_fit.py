"""The costs of putting blocks of one image side by side, and at each place of the image.

Neighbouring blocks of a plain image continue each other across their common edge. The cost of two
blocks side by side measures how badly each block continues the other one. This cost is relative to
the misfit of the two blocks with their best partners. The cost of a block at a place measures how
much its brightness and its slopes differ from those that plain images of the same kind usually have
at this place.

Letters in shapes: N blocks in R rows and S columns, M plain images, p block size, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.attacks.key_search.block_statistics import Indices, Matrix
from fl_vitlora.encryption.image_blocks import grid, to_blocks

Blocks = NDArray[np.float64]
FLAT = 1.0  # grey levels that are added to a spread or misfit, so that it is never 0
BEST = 2  # best partners of a block, whose mean misfit is the unit of its misfits
WORST = 4.0  # the largest cost of a misfit
TRUST = 2.0  # weight of an unusual look at a place, relative to the weight of a misfit


@dataclass(frozen=True, kw_only=True)
class Habits:
    """The usual looks of blocks in plain images of the same kind.

    A look is four numbers: brightness, contrast, and the slopes in both directions (`look_of`).

    Attributes:
        rows: The number R of rows of blocks.
        columns: The number S of columns.
        mean: The mean look of the blocks at each place, (N, 4).
        spread: The standard deviations of the four numbers at each place, (N, 4).
    """

    rows: int
    columns: int
    mean: Matrix
    spread: Matrix

    @classmethod
    def of(cls, images: Tensor, block_size: int) -> Self:
        """Computes the usual looks from plain images, uint8 (M, C, H, W)."""
        rows, columns = grid(images.shape[-2], images.shape[-1], block_size)
        blocks = squares(images, block_size)
        looks = look_of(blocks)
        return cls(
            rows=rows,
            columns=columns,
            mean=looks.mean(axis=0),
            spread=looks.std(axis=0) + FLAT,
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of the blocks of one image at each other's sides and at each place.

    Attributes:
        beside: The cost of block b to the right of block a, (N, N).
        below: The cost of block b below block a, (N, N).
        place: The cost of block b at place s, (N, N).
    """

    beside: Matrix
    below: Matrix
    place: Matrix

    @classmethod
    def of(cls, blocks: Blocks, habits: Habits) -> Self:
        """Computes the costs of all pairs of blocks, (N, C, p, p), and of blocks at places."""
        turned = np.swapaxes(blocks, -1, -2)
        away = (look_of(blocks)[:, None] - habits.mean) / habits.spread
        return cls(
            beside=in_proportion(misfit(blocks[:, None], blocks[None])),
            below=in_proportion(misfit(turned[:, None], turned[None])),
            place=TRUST * np.minimum(away**2, WORST).mean(axis=-1),
        )


def in_proportion(misfits: Matrix) -> Matrix:
    """Divides the misfit of each pair of blocks by the smallest misfits of these two blocks.

    The divisor is the mean misfit of each of the two blocks with the `BEST` blocks that fit it
    best. Therefore a misfit counts little between blocks with a texture, which fit no block well.

    Args:
        misfits: The misfit of each pair of blocks, (N, N).
    """
    apart = misfits + np.diag(np.full(len(misfits), np.inf))
    rank = min(BEST, len(misfits) - 1)
    rows = np.partition(apart, rank - 1, axis=1)[:, :rank].mean(axis=1, keepdims=True)
    columns = np.partition(apart, rank - 1, axis=0)[:rank].mean(axis=0, keepdims=True)
    found: Matrix = np.minimum(misfits / ((rows + columns) / 2 + FLAT), WORST)
    return found


def cost_of(order: Indices, costs: Costs, habits: Habits) -> float:
    """Returns the cost of an order of blocks, (N,)."""
    table = order.reshape(habits.rows, habits.columns)
    return float(
        costs.beside[table[:, :-1], table[:, 1:]].sum()
        + costs.below[table[:-1], table[1:]].sum()
        + costs.place[order, np.arange(len(order))].sum()
    )


def squares(images: Tensor, block_size: int) -> Blocks:
    """Cuts images, uint8 (M, C, H, W), into square blocks, (M, N, C, p, p)."""
    blocks = to_blocks(images, block_size).numpy().astype(np.float64)
    return blocks.reshape(*blocks.shape[:2], -1, block_size, block_size)


def misfit(left: Blocks, right: Blocks) -> Matrix:
    """Returns how badly blocks and their right neighbours continue each other.

    Each block is continued by one pixel along its last slope. The result is compared with the first
    pixels of the other block. The differences are averaged over the edge, in both directions.

    Args:
        left: Blocks, (..., C, p, p).
        right: The right neighbours of the blocks in `left`, (..., C, p, p), or a tensor that
            broadcasts with `left`.

    Returns:
        The mean absolute differences in grey levels, (...).
    """
    inner = min(1, left.shape[-1] - 1)  # blocks of one pixel have no slope
    last, before = left[..., -1], left[..., -1 - inner]
    first, after = right[..., 0], right[..., inner]
    forth, back = np.abs(2 * last - before - first), np.abs(2 * first - after - last)
    found: Matrix = (forth + back).mean(axis=(-1, -2)) / 2
    return found


def look_of(blocks: Blocks) -> Matrix:
    """Returns brightness, contrast and the two slopes of blocks (..., C, p, p), as (..., 4)."""
    grey = blocks.mean(axis=-3)
    half = max(1, grey.shape[-1] // 2)
    across = grey[..., :, -half:].mean(axis=(-1, -2)) - grey[..., :, :half].mean(axis=(-1, -2))
    down = grey[..., -half:, :].mean(axis=(-1, -2)) - grey[..., :half, :].mean(axis=(-1, -2))
    found: Matrix = np.stack([grey.mean(axis=(-1, -2)), grey.std(axis=(-1, -2)), across, down], -1)
    return found
