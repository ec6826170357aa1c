"""Distances between the gradient of reconstructed images and the observed gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TINY = 1e-20  # prevents a division by zero if a gradient is zero


def residuals(found: Mapping[str, Tensor], target: Mapping[str, Tensor], exact: bool) -> Tensor:
    """Returns the differences of two gradients, in which all tensors have the same weight.

    Args:
        found: The gradient of the reconstructed images, by name.
        target: The observed gradient. Tensors that it lacks do not count.
        exact: True if each tensor is divided by the length of the observed tensor. False if both
            tensors are divided by their own length, so that only directions count.

    Returns:
        A vector. The squared length of the vector is 0 if the gradients agree, and the number of
        tensors if `found` is zero and `exact` is True.

    Example:
        >>> one, two = {"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}
        >>> residuals(one, two, exact=True), residuals(one, two, exact=False)
        (tensor([0.5000]), tensor([0.]))
    """
    parts = []
    for name, wanted in target.items():
        length = wanted.norm()
        mine = found[name] / length if exact else found[name] / (found[name].norm() + TINY)
        parts.append((mine - wanted / length).flatten())
    return torch.cat(parts)


def cosine_distance(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Returns 1 minus the cosine of the angle between two gradients, over all tensors together.

    Example:
        >>> cosine_distance({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([2.0, 0.0])})
        tensor(0.)
    """
    mine = torch.cat([found[name].flatten() for name in target])
    wanted = torch.cat([tensor.flatten() for tensor in target.values()])
    distance: Tensor = 1 - mine @ wanted / (mine.norm() * wanted.norm() + TINY)
    return distance
