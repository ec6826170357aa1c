"""Puts the blocks of one image in order, as the pieces of a jigsaw puzzle.

Several orders are grown from single blocks: the block that fits best comes next (`block_fit` has
the costs). Then each order is improved by assignment. The method chooses places at random of which
no two are neighbours. The cost of the blocks at these places depends only on the blocks around
them. Therefore their best order is an assignment problem. This is repeated with other places until
nothing improves.

Source: the order of growth is similar to that of Pomeranz et al. (CVPR 2011). Chuman & Kiya attack
encrypted images with a jigsaw solver (arXiv 2211.02369).

Letters in shapes: N blocks in R rows and S columns.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.attacks.key_search.block_fit import WORST, Costs, Habits, cost_of
from fl_vitlora.attacks.key_search.block_statistics import Indices, Matrix
from fl_vitlora.attacks.key_search.matching import assignment

PATIENCE = 60  # searches in a row that improve nothing before the search ends
STARTS = 4  # blocks from which an order is grown


def solved(costs: Costs, habits: Habits, seed: int = 0) -> Indices:
    """Searches the order of blocks with the least cost.

    Args:
        costs: The costs of the blocks of one image.
        habits: The usual brightness, contrast and slopes of the blocks at each place.
        seed: The seed of the choices of places.

    Returns:
        The block at each place, (N,).
    """
    generator = np.random.default_rng(seed)
    starts = [np.argsort(assignment(costs.place))]
    starts += [grown(int(first), costs, habits) for first in _most_certain(costs)]
    found = [
        _improved(_shifted(start, costs, habits), costs, habits, generator) for start in starts
    ]
    return min(found, key=lambda order: cost_of(order, costs, habits))


def _shifted(order: Indices, costs: Costs, habits: Habits) -> Indices:
    """Shifts an order to the place of least cost; blocks that leave one side enter at the other."""
    table = order.reshape(habits.rows, habits.columns)
    moves = [(down, right) for down in range(habits.rows) for right in range(habits.columns)]
    moved = (np.roll(table, move, axis=(0, 1)).reshape(-1) for move in moves)
    return min(moved, key=lambda one: cost_of(one, costs, habits))


def _most_certain(costs: Costs) -> Indices:
    """Returns the blocks whose best right neighbour is clearly better than the second-best."""
    best = np.partition(costs.beside + np.diag(np.full(len(costs.beside), WORST)), 1, axis=1)
    return np.argsort(best[:, 0] - best[:, 1])[:STARTS]


def grown(first: int, costs: Costs, habits: Habits) -> Indices:
    """Grows an order from one block. The best pair of a free place and a block is added next.

    The first block may be anywhere in the grid. So the position of the grid is only known when all
    its rows and columns are taken.

    Args:
        first: The number of the first block.
        costs: The costs of the blocks.
        habits: The usual brightness, contrast and slopes of the blocks at each place.

    Returns:
        The block at each place, (N,).
    """
    rows, columns = habits.rows, habits.columns
    table = np.full((2 * rows + 1, 2 * columns + 1), -1)  # with a margin of one place
    table[rows, columns] = first
    left = np.ones(len(costs.place), dtype=bool)
    left[first] = False
    while left.any():
        fits = _fits(table, rows, columns, costs)
        spots, blocks = np.array(list(fits)), np.flatnonzero(left)
        values = np.stack(list(fits.values()))[:, blocks]
        spot, block = np.unravel_index(int(values.argmin()), values.shape)
        table[tuple(spots[spot])] = blocks[block]
        left[blocks[block]] = False
    taken = np.argwhere(table >= 0)
    (top, start), (bottom, end) = taken.min(axis=0), taken.max(axis=0) + 1
    found: Indices = table[top:bottom, start:end].reshape(-1).astype(np.int64)
    return found


def _fits(table: Indices, rows: int, columns: int, costs: Costs) -> dict[tuple[int, int], Matrix]:
    """Returns the mean cost of every block at each free place next to a taken place."""
    taken = np.argwhere(table >= 0)
    (top, start), (bottom, end) = taken.min(axis=0), taken.max(axis=0)
    found = {}
    for row in range(max(1, bottom - rows + 1), min(table.shape[0] - 1, top + rows)):
        for column in range(max(1, end - columns + 1), min(table.shape[1] - 1, start + columns)):
            if table[row, column] >= 0:
                continue
            sides = [
                (costs.beside, table[row, column - 1]),
                (costs.beside.T, table[row, column + 1]),
                (costs.below, table[row - 1, column]),
                (costs.below.T, table[row + 1, column]),
            ]
            near = [matrix[block] for matrix, block in sides if block >= 0]
            if near:
                found[row, column] = np.mean(near, axis=0)
    return found


def _improved(
    order: Indices, costs: Costs, habits: Habits, generator: np.random.Generator
) -> Indices:
    """Reassigns the blocks of places that are no neighbours, until nothing improves."""
    best, waited = cost_of(order, costs, habits), 0
    while waited < PATIENCE:
        places = apart(habits.rows, habits.columns, generator)
        new = order.copy()
        new[places] = order[places][np.argsort(assignment(_costs_at(places, order, costs, habits)))]
        cost = cost_of(new, costs, habits)
        waited = 0 if cost < best - 1e-9 else waited + 1
        if cost < best:
            order, best = new, cost
    return order


def apart(rows: int, columns: int, generator: np.random.Generator) -> Indices:
    """Chooses places of a grid at random, so that no two of them are neighbours."""
    lot = generator.permutation(rows * columns).reshape(rows, columns)
    around = np.pad(lot, 1, constant_values=-1)
    others = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return np.flatnonzero(np.all([lot > other for other in others], axis=0))


def _costs_at(places: Indices, order: Indices, costs: Costs, habits: Habits) -> Matrix:
    """Returns the cost of each block at `places` for each of these places."""
    blocks, columns = order[places], habits.columns
    total = costs.place[np.ix_(blocks, places)].copy()
    for at, place in enumerate(places):
        row, column = divmod(int(place), columns)
        if column > 0:
            total[:, at] += costs.beside[order[place - 1], blocks]
        if column < columns - 1:
            total[:, at] += costs.beside[blocks, order[place + 1]]
        if row > 0:
            total[:, at] += costs.below[order[place - columns], blocks]
        if row < habits.rows - 1:
            total[:, at] += costs.below[blocks, order[place + columns]]
    return total
