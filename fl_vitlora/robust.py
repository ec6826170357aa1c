"""Robust means for robust strategies: a few arbitrary updates cannot change these means much.

Distances and means are computed in float64, in which the square of a float32 number never
overflows. Clients report their numbers of images themselves, and may lie. Therefore the functions
ignore the numbers of images unless the caller asks to use them.

Letters: K is the number of clients. At most f of the K clients are byzantine, which means that they
may send arbitrary updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State, count, mean, zip_map
from fl_vitlora.strategy import Update, shares

COLUMNS = 2**10  # differences of only this number of columns of a matrix are in memory at a time


def coordinatewise(updates: Sequence[Update], reduce: Callable[[Tensor], Tensor]) -> State:
    """Reduces the deltas of all clients to one delta, for each coordinate independently.

    Args:
        updates: The updates of K clients.
        reduce: A function that reduces a tensor of shape (K, ...) to shape (...). The function
            `reduce` gets the K values of each coordinate in ascending order.

    Returns:
        The reduced tensors by name, in float64.
    """
    return zip_map(
        lambda *deltas: reduce(torch.stack(deltas).double().sort(dim=0).values),
        *(update.delta for update in updates),
    )


def middle(rising: Tensor, trimmed: int) -> Tensor:
    """Averages sorted values without the smallest and the largest values.

    Args:
        rising: Values (K, ...) in ascending order along the first dimension.
        trimmed: The number of values that are left out at each end.

    Example:
        >>> middle(torch.tensor([0.0, 1.0, 3.0, 1e30]), trimmed=1)
        tensor(2.)
    """
    return rising[trimmed : len(rising) - trimmed].mean(dim=0)


def krum(updates: Sequence[Update], f: int, chosen: int) -> list[Update]:
    """Chooses the updates that are nearest to other updates, by the score of Krum.

        s(k) = Σ ‖Δₖ - Δⱼ‖² over the K - f - 2 clients j ≠ k that are nearest to k

    Δₖ is the delta of client k. The score is meaningful only if K ≥ 2f + 3. With fewer clients, f
    is lowered until K ≥ 2f + 3. Among equal scores the client with the lower number comes first.
    The function needs 8·K·S bytes of memory for S numbers in a delta.

    Args:
        updates: The updates of K clients.
        f: The number of clients that may send arbitrary updates.
        chosen: The number of updates to choose. If there are fewer updates than `chosen`, all
            updates are chosen.

    Returns:
        The chosen updates; the update with the lowest score comes first.

    Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017.
    """
    tolerated = min(f, max(0, (len(updates) - 3) // 2))
    neighbours = max(1, len(updates) - tolerated - 2)
    flat = _flattened(updates)
    squares: list[list[float]] = [_squares(flat, row).tolist() for row in flat]
    scores = [sum(sorted(row[:k] + row[k + 1 :])[:neighbours]) for k, row in enumerate(squares)]
    ranked = sorted(zip(scores, updates, strict=True), key=lambda pair: (pair[0], pair[1].client))
    return [update for _, update in ranked[:chosen]]


def too_few_for_krum(clients: int, f: int) -> str:
    """Returns the reason why Krum cannot tolerate f byzantine clients; empty if Krum can.

    Example:
        >>> too_few_for_krum(15, 6), too_few_for_krum(6, 2)
        ('', 'f hostile clients need 2f + 3 clients or more in a round, got 6: --set strategy.f=1')
    """
    if clients >= 2 * f + 3 or not f:
        return ""
    most = max(0, (clients - 3) // 2)
    return (
        f"f hostile clients need 2f + 3 clients or more in a round, got {clients}: "
        f"--set strategy.f={most}"
    )


def geometric_median(
    updates: Sequence[Update], smoothing: float, iterations: int, *, by_images: bool = False
) -> State:
    """Approximates the point with the least sum of distances from the clients' deltas.

        z = argmin Σ pₖ·‖z - Δₖ‖;  z ← Σ βₖ·Δₖ / Σ βₖ,  βₖ = pₖ / max(ν, ‖z - Δₖ‖)

    Δₖ is the delta of client k, and pₖ = 1/K is its weight, so that a client gains nothing by
    reporting more images. The iteration starts at z = 0, where the model does not change. Therefore
    a delta that is far away has little weight even in the first step. The point z is computed in
    float64. The function needs 8·K·S bytes of memory for S numbers in a delta.

    Args:
        updates: The updates of K clients.
        smoothing: The smallest distance ν that the formula uses. The distance ν keeps the weight βₖ
            finite when z reaches Δₖ.
        iterations: The number of iterations of Weiszfeld's algorithm, the second formula.
        by_images: True if pₖ is the client's share of all images, as in the paper, instead of 1/K.

    Returns:
        The tensors of the point z by name, at least in float32.

    Source: Pillutla et al., Robust aggregation for federated learning, arXiv 1912.13445.
    """
    flat = _flattened(updates)
    weights = shares(updates) if by_images else [1 / len(updates)] * len(updates)
    centre = torch.zeros_like(flat[0])
    for _ in range(iterations):
        distances = _squares(flat, centre).sqrt().tolist()
        pairs = zip(weights, distances, strict=True)
        betas = [share / max(smoothing, distance) for share, distance in pairs]
        centre = mean([{"": row} for row in flat], betas)[""]
    return _restored(centre, updates[0].delta)


def _flattened(updates: Sequence[Update]) -> Tensor:
    """Returns the deltas of K clients as the rows of one matrix (K, S) of float64.

    The columns have the order of the sorted names of the tensors. Therefore the order of the names
    in a dictionary does not change how sums are rounded.

    Raises:
        ValueError: If the deltas do not all have the same names.
    """
    first = zip_map(lambda tensor, *_: tensor, *(update.delta for update in updates))
    names = sorted(first)
    device = first[names[0]].device
    flat = torch.empty(len(updates), count(first), dtype=torch.float64, device=device)
    for row, update in zip(flat, updates, strict=True):
        torch.cat([update.delta[name].flatten() for name in names], out=row)
    return flat


def _squares(flat: Tensor, point: Tensor) -> Tensor:
    """Computes ‖Δₖ - z‖² for each row Δₖ of a matrix (K, S), from differences, (K,).

    The formula ‖Δₖ‖² - 2·Δₖ·z + ‖z‖² is faster, but its terms cancel if Δₖ is near z.

    Args:
        flat: The rows Δₖ, (K, S).
        point: The point z, (S,).
    """
    blocks = zip(torch.split(flat, COLUMNS, dim=1), torch.split(point, COLUMNS), strict=True)
    sums = [(rows - part).square_().sum(dim=1) for rows, part in blocks]
    return torch.stack(sums).sum(dim=0)


def _restored(row: Tensor, like: State) -> State:
    """Returns the tensors in a row of `_flattened`, with the names, order and shapes of `like`."""
    names = sorted(like)
    sizes = [like[name].numel() for name in names]
    parts = dict(zip(names, torch.split(row, sizes), strict=True))
    return {
        name: parts[name].reshape(tensor.shape).to(torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in like.items()
    }
