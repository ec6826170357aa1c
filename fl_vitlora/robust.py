"""Robust means, which a few arbitrary updates cannot carry away; robust strategies use them.

Distances and middles are taken in float64, where no float32 is so large that it would overflow.
Clients count their images themselves, so none of this looks at the counts unless it is asked to.

K clients, of whom at most f are byzantine: they send whatever they like.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State, mean, scale, zip_map
from fl_vitlora.strategy import Update, shares


def coordinatewise(updates: Sequence[Update], reduce: Callable[[Tensor], Tensor]) -> State:
    """Reduces the deltas of all clients, every coordinate by itself.

    Args:
        updates: The updates of K clients.
        reduce: Makes (...) of (K, ...); the K values of a coordinate rise.

    Returns:
        What it made, in float64.
    """
    return zip_map(
        lambda *deltas: reduce(torch.stack(deltas).double().sort(dim=0).values),
        *(update.delta for update in updates),
    )


def middle(rising: Tensor, trimmed: int) -> Tensor:
    """Averages what is left of rising values (K, ...) when as many are cut off at each end.

    Example:
        >>> middle(torch.tensor([0.0, 1.0, 3.0, 1e30]), trimmed=1)
        tensor(2.)
    """
    return rising[trimmed : len(rising) - trimmed].mean(dim=0)


def krum(updates: Sequence[Update], f: int, chosen: int) -> list[Update]:
    """Chooses the updates that lie nearest to others, by the score of Krum.

        s(k) = Σ ‖Δₖ - Δⱼ‖² over the K - f - 2 clients j ≠ k that are nearest to k

    The score means something where K ≥ 2f + 3; f is lowered to that where clients are fewer, and
    among equal scores the client of the lower number goes first.

    Args:
        updates: The updates of K clients.
        f: The number of clients that may send anything.
        chosen: The number of updates that are wanted; all of them if they are fewer.

    Returns:
        The chosen updates, the most trusted first.

    Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017.
    """
    tolerated = min(f, max(0, (len(updates) - 3) // 2))
    neighbours = max(1, len(updates) - tolerated - 2)
    squares = _squared_distances(updates)
    scores = [sum(sorted(row[:k] + row[k + 1 :])[:neighbours]) for k, row in enumerate(squares)]
    ranked = sorted(zip(scores, updates, strict=True), key=lambda pair: (pair[0], pair[1].client))
    return [update for _, update in ranked[:chosen]]


def too_few_for_krum(clients: int, f: int) -> str:
    """Says why Krum cannot withstand f of so many clients; empty where it can.

    Example:
        >>> too_few_for_krum(15, 6), too_few_for_krum(6, 2)
        ('', 'it withstands f of 2f + 3 clients, and 6 take part: --set strategy.f=1')
    """
    if clients >= 2 * f + 3 or not f:
        return ""
    most = max(0, (clients - 3) // 2)
    return f"it withstands f of 2f + 3 clients, and {clients} take part: --set strategy.f={most}"


def _squared_distances(updates: Sequence[Update]) -> list[list[float]]:
    """Computes ‖Δⱼ - Δₖ‖² for each pair of clients, (K, K)."""
    squares = [[0.0] * len(updates) for _ in updates]
    for j, k in itertools.combinations(range(len(updates)), 2):
        squares[j][k] = squares[k][j] = _squared_distance(updates[j].delta, updates[k].delta)
    return squares


def geometric_median(
    updates: Sequence[Update], smoothing: float, iterations: int, *, by_images: bool = False
) -> State:
    """Approaches the point of least summed distance from the deltas.

        z = argmin Σ pₖ·‖z - Δₖ‖;  z ← Σ βₖ·Δₖ / Σ βₖ,  βₖ = pₖ / max(ν, ‖z - Δₖ‖)

    pₖ = 1/K, so that a client gains nothing by the count of images that it reports. It begins at
    z = 0, the model of the round, so that a delta from far away has lost its weight before the
    first step.

    Args:
        updates: The updates of K clients.
        smoothing: ν, which keeps the weight of a delta finite that z has met.
        iterations: The iterations of Weiszfeld's algorithm.
        by_images: True if pₖ is the client's share of all images instead, as in the paper.

    Returns:
        The point, at least in float32.

    Source: Pillutla et al., Robust aggregation for federated learning, arXiv 1912.13445.
    """
    deltas = [{n: _at_least_float32(d) for n, d in update.delta.items()} for update in updates]
    weights = shares(updates) if by_images else [1 / len(updates)] * len(updates)
    centre = scale(deltas[0], 0.0)
    for _ in range(iterations):
        distances = [_squared_distance(centre, delta) ** 0.5 for delta in deltas]
        pairs = zip(weights, distances, strict=True)
        centre = mean(deltas, [share / max(smoothing, distance) for share, distance in pairs])
    return centre


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _squared_distance(a: State, b: State) -> float:
    """Computes ‖a - b‖² over all tensors together, in float64."""
    return sum(float((x.double() - b[n].double()).square().sum()) for n, x in a.items())
