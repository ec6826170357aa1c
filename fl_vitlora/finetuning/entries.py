"""Functions that find the largest or smallest entries of a matrix, or replace entries of a matrix.

If several entries have the same magnitude, these functions choose the first of these entries.
Therefore all machines choose the same entries.
"""

from __future__ import annotations

from torch import Tensor


def largest(change: Tensor, chosen: int) -> Tensor:
    """Returns the places of the entries with the largest magnitudes, in ascending order.

    A place is the index of an entry in the flattened tensor.

    Args:
        change: A tensor of any shape.
        chosen: The number of entries to find.

    Example:
        >>> import torch
        >>> largest(torch.tensor([[1.0, -3.0], [3.0, 2.0]]), 2), largest(torch.ones(3), 2)
        (tensor([1, 2]), tensor([0, 1]))
    """
    order = change.flatten().abs().sort(descending=True, stable=True).indices
    return order[:chosen].sort().values


def smallest(weight: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Returns the places of the entries with the smallest magnitudes, and the next magnitude.

    Args:
        weight: A tensor of any shape.
        chosen: The number of entries to find.

    Returns:
        A pair. The first is the places in the flattened tensor, (chosen,), in ascending order. The
        second is a scalar, the smallest magnitude of the entries that are not chosen; if all
        entries are chosen, the scalar is the largest magnitude.

    Example:
        >>> import torch
        >>> smallest(torch.tensor([[1.0, -3.0], [3.0, 2.0]]), 2)
        (tensor([0, 3]), tensor(3.))
    """
    sizes, order = weight.flatten().abs().sort(stable=True)
    return order[:chosen].sort().values, sizes[min(chosen, len(sizes) - 1)].clone()


def scattered(whole: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Returns a matrix with new values at some places, (..., m, n).

    Args:
        whole: The matrix before its values are replaced, (m, n).
        places: The indices in the flattened matrix, (k,) or (..., k), as whole numbers.
        values: The new values, (..., k).

    Example:
        >>> import torch
        >>> scattered(torch.zeros(2, 2), torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
        tensor([[0., 5.],
                [6., 0.]])
    """
    leading = values.shape[:-1]
    flat = whole.flatten().expand(*leading, -1)
    return flat.scatter(-1, places.expand_as(values), values).reshape(*leading, *whole.shape)
