"""How badly the blocks of one image fit beside each other, and at each place of the image.

Neighbouring blocks of a plain image continue each other across their common edge. The cost of two
blocks side by side is how far each continues the other wrongly, in proportion to their best
partners. The cost of a block at a place is how unusual its brightness and its slopes are there in
plain images of the kind.

N blocks in R rows and S columns, M plain images, p block size, C channels.
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
FLAT = 1.0  # grey levels; the least that counts as usual
BEST = 2  # partners of a block by which its misfits are measured
WORST = 4.0  # no misfit counts more
TRUST = 2.0  # how much a look that is unusual at a place counts, beside a misfit


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What is usual in plain images of the kind.

    Attributes:
        rows: The number R of rows of blocks.
        columns: The number S of columns.
        mean: The mean brightness and slopes of the blocks at each place, (N, 4).
        spread: Their standard deviations, (N, 4).
    """

    rows: int
    columns: int
    mean: Matrix
    spread: Matrix

    @classmethod
    def of(cls, images: Tensor, block_size: int) -> Self:
        """Learns what is usual from plain images, uint8 (M, C, H, W)."""
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
    """How badly the blocks of one image fit.

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
        """Compares all pairs of blocks, (N, C, p, p), and all blocks with all places."""
        turned = np.swapaxes(blocks, -1, -2)
        away = (look_of(blocks)[:, None] - habits.mean) / habits.spread
        return cls(
            beside=in_proportion(misfit(blocks[:, None], blocks[None])),
            below=in_proportion(misfit(turned[:, None], turned[None])),
            place=TRUST * np.minimum(away**2, WORST).mean(axis=-1),
        )


def in_proportion(misfits: Matrix) -> Matrix:
    """Divides misfits, (N, N), by what the best partners of the two blocks reach.

    So a misfit counts little between blocks with a texture, which fit no other block well.
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
    """Returns how far blocks and their right neighbours continue each other wrongly.

    Each block is continued by one pixel along its last slope. The differences from the first pixels
    of the other are averaged over the edge, in both directions.

    Args:
        left: Blocks, (..., C, p, p).
        right: Their right neighbours, (..., C, p, p), or any that broadcast with them.

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
    """Returns brightness, spread and the two slopes of blocks (..., C, p, p), as (..., 4)."""
    grey = blocks.mean(axis=-3)
    half = max(1, grey.shape[-1] // 2)
    across = grey[..., :, -half:].mean(axis=(-1, -2)) - grey[..., :, :half].mean(axis=(-1, -2))
    down = grey[..., -half:, :].mean(axis=(-1, -2)) - grey[..., :half, :].mean(axis=(-1, -2))
    found: Matrix = np.stack([grey.mean(axis=(-1, -2)), grey.std(axis=(-1, -2)), across, down], -1)
    return found
