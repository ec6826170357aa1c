"""A trial of the jigsaw attack on natural images: pieces of the two photographs of scikit-learn.

Letters in shapes: C channels, H × W pixels, n images, N blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.attacks.key_search.block_fit import Costs, Habits, squares
from fl_vitlora.attacks.key_search.jigsaw import solved

KNOWN, ATTACKED = 30, 4  # numbers of pieces of photographs


def pieces(photograph: Tensor, count: int, side: int, seed: int) -> Tensor:
    """Cuts random squares with twice the given side, and halves their size.

    Args:
        photograph: A photograph, uint8 (C, H, W).
        count: The number n of pieces.
        side: The side of a piece in pixels.
        seed: The seed of the places of the pieces.

    Returns:
        The pieces, uint8 (n, C, side, side).
    """
    generator, whole = np.random.default_rng(seed), 2 * side
    rows, columns = (size - whole + 1 for size in photograph.shape[1:])
    corners = [(generator.integers(rows), generator.integers(columns)) for _ in range(count)]
    cut = torch.stack([photograph[:, y : y + whole, x : x + whole] for y, x in corners])
    return F.avg_pool2d(cut.float(), 2).round().to(torch.uint8)


def from_blocks(side: int, block_size: int, seed: int) -> dict[str, float]:
    """Scrambles the blocks of pieces of one photograph, and puts the blocks back in order.

    The adversary knows pieces of the other photograph. Every piece has a key of its own.

    Args:
        side: The side of a piece in pixels.
        block_size: The side of a block in pixels.
        seed: The seed of places and orders.

    Returns:
        The shares of blocks in their place, and of neighbours that are side by side again.
    """
    photographs = [torch.tensor(one).permute(2, 0, 1) for one in load_sample_images().images]
    habits = Habits.of(pieces(photographs[1], KNOWN, side, seed), block_size)
    generator = np.random.default_rng(seed)
    places, neighbours = [], []
    for blocks in squares(pieces(photographs[0], ATTACKED, side, seed), block_size):
        key = generator.permutation(len(blocks))
        order = key[solved(Costs.of(blocks[key], habits), habits)]
        table = order.reshape(habits.rows, habits.columns)
        beside, below = np.diff(table, axis=1) == 1, np.diff(table, axis=0) == habits.columns
        whole_row = table[:, :-1] % habits.columns < habits.columns - 1
        places.append((order == np.arange(len(order))).mean())
        neighbours.append(np.concatenate([(beside & whole_row).ravel(), below.ravel()]).mean())
    return {"places": float(np.mean(places)), "neighbours": float(np.mean(neighbours))}
