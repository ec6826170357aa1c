"""The order in which two correlation matrices agree best, found by quadratic assignment.

Letters in shapes: D entries, C channels, p block size, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment, quadratic_assignment

from fl_vitlora.attacks.clock import unhurried
from fl_vitlora.attacks.key_search.block_statistics import Indices, Matrix

STARTS = 20  # random starts; the barycentre is one more start


def best_orders(
    seen: Matrix,
    known: Matrix,
    generator: np.random.Generator,
    starts: int = STARTS,
    *,
    check: Callable[[], None] = unhurried,
) -> list[Indices]:
    """Finds orders o for which seen ≈ known[o][:, o].

    The fast approximate method (FAQ) runs from several starts. Each result is improved by
    exchanging pairs.

    Source: Vogelstein et al., PLoS ONE 2015, as in `scipy.optimize.quadratic_assignment`.

    Args:
        seen: Correlation matrix of the ciphertext, (D, D), symmetric.
        known: Correlation matrix of plain images, (D, D), symmetric.
        generator: Generator of the random starts.
        starts: The number of random starts. The barycentre is one more start.
        check: A function that is called before each start, and that can raise an error to end the
            search.

    Returns:
        Different orders, sorted by their squared error, the smallest error first. Each order gives
        for every entry of `seen` the matching entry of `known`.
    """
    found: dict[tuple[int, ...], float] = {}
    for start in ["barycenter"] + ["randomized"] * starts:
        check()
        options = {"maximize": True, "rng": generator}
        coarse = quadratic_assignment(seen, known, method="faq", options=options | {"P0": start})
        pairs = np.stack([np.arange(len(seen)), coarse.col_ind], axis=1)
        fine = quadratic_assignment(
            seen, known, method="2opt", options=options | {"partial_guess": pairs}
        ).col_ind
        found[tuple(map(int, fine))] = float(((seen - known[np.ix_(fine, fine)]) ** 2).sum())
    return [np.array(order) for order in sorted(found, key=found.__getitem__)]


def assignment(costs: Matrix) -> Indices:
    """Assigns a different column to each row so that the sum of costs is smallest."""
    columns: Indices = linear_sum_assignment(costs)[1].astype(np.int64)
    return columns


def mirror_images(rows: int, columns: int) -> Iterator[Indices]:
    """Yields the symmetries of a grid: four mirror images, and four rotated ones if it is square.

    Statistics of neighbouring pixels cannot distinguish these symmetries.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.

    Yields:
        An order of the grid's places: for each place, the place that moves there.

    Example:
        >>> [image.tolist() for image in mirror_images(1, 2)]
        [[0, 1], [1, 0], [0, 1], [1, 0]]
    """
    places = np.arange(rows * columns).reshape(rows, columns)
    for turned in (places, places.T) if rows == columns else (places,):
        for flipped in (turned, turned[::-1]):
            yield flipped.reshape(-1)
            yield flipped[:, ::-1].reshape(-1)


def with_channels(places: Sequence[int] | Indices, channels: int) -> Indices:
    """Extends an order of the places of a block, (p²,), to its entries in all channels, (D,)."""
    one = np.asarray(places, dtype=np.int64)
    return np.concatenate([one + channel * len(one) for channel in range(channels)])


def entry_order(
    seen: Sequence[Indices], known: Sequence[Indices], order: Sequence[int] | Indices
) -> Indices:
    """Extends an order of groups to the entries. Within a group the order is arbitrary.

    Example:
        >>> seen, known = [np.array([0, 2]), np.array([1])], [np.array([0]), np.array([1, 2])]
        >>> entry_order(seen, known, [1, 0]).tolist()
        [1, 0, 2]
    """
    entries = np.empty(sum(map(len, seen)), dtype=np.int64)
    for group, origin in zip(seen, order, strict=True):
        entries[group] = known[origin]
    return entries
