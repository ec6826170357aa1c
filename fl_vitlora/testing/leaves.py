"""Divides values of any type into their smallest parts, so that two values can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a value, that is, the parts without smaller parts, with their places.

    Dataclasses, mappings, sequences, sets and modules have parts. Functions are left out.

    Args:
        value: The value.
        path: The place of the value, which begins the places of its parts.

    Example:
        >>> dict(leaves({"a": [1, "two"], "b": None}))
        {'[a][0]': 1, '[a][1]': 'two', '[b]': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from leaves(getattr(value, item.name), f"{path}.{item.name}")
    elif isinstance(value, nn.Module):
        yield from leaves(value.state_dict(), path)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}[{key}]")
    elif isinstance(value, Set):
        yield path, sorted(map(repr, value))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for position, part in enumerate(value):
            yield from leaves(part, f"{path}[{position}]")
    elif not callable(value) or isinstance(value, (Tensor, type)):
        yield path, value


def copied(value: Any) -> dict[str, Any]:
    """Returns copies of the leaves (smallest parts) of a value, by place."""
    return {place: _copy(leaf) for place, leaf in leaves(value)}


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Returns the first place where two values differ, or None if they have the same bits.

    Args:
        one: The leaves of a value, as `copied` returns them.
        other: The leaves of the other value.

    Example:
        >>> first_difference(copied([1, torch.zeros(2)]), copied([1, torch.ones(2)]))
        '[1]'
    """
    for place in dict.fromkeys([*one, *other]):
        if place not in one or place not in other or not _same(one[place], other[place]):
            return place
    return None


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 - NaN
