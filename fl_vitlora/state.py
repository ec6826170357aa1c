"""The algebra of parameter dictionaries, which server and clients compute with.

A `State` maps the names of tensors to the tensors. All functions are pure. Their results have the
names of the first argument in the same order, and never share memory with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def zip_map(
    function: Callable[..., Tensor], first: Mapping[str, Tensor], *rest: Mapping[str, Tensor]
) -> State:
    """Applies a function to the tensors with the same name.

    Args:
        function: A function with one tensor from each state as its arguments.
        first: The state that sets the names and their order.
        *rest: States with the same names.

    Returns:
        A new state.

    Raises:
        ValueError: When the names differ.
    """
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(
                f"states differ in their tensors: {sorted(first.keys() ^ other.keys())}"
            )
    return {name: function(first[name], *(other[name] for other in rest)) for name in first}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> State:
    """Returns a + b."""
    return zip_map(torch.add, a, b)


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> State:
    """Returns a - b."""
    return zip_map(torch.sub, a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> State:
    """Returns factor · a."""
    return zip_map(lambda x: x * factor, a)


def clone(a: Mapping[str, Tensor]) -> State:
    """Returns a copy without gradients that shares no memory with ``a``."""
    return {name: tensor.detach().clone() for name, tensor in a.items()}


def mean(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> State:
    """Computes the weighted mean Σ wₖ·xₖ / Σ wₖ in float64 and returns it in the states' type.

    The sum is computed in the given order. So a caller that sorts its states always gets the same
    bits.

    Args:
        states: The K states, with equal names and shapes.
        weights: The K weights, not negative and not all zero.

    Returns:
        The mean.

    Raises:
        ValueError: When there is no state, or the weights are not valid.

    Example:
        >>> mean([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [3, 1])
        {'w': tensor([1.])}
    """
    if not states or len(states) != len(weights):
        raise ValueError(f"{len(states)} states cannot be averaged with {len(weights)} weights")
    total = float(sum(weights))
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must not be negative and not all zero, got {list(weights)}")

    def average(*tensors: Tensor) -> Tensor:
        accumulated = torch.zeros_like(tensors[0], dtype=torch.float64)
        for tensor, weight in zip(tensors, weights, strict=True):
            accumulated += tensor.to(torch.float64) * (weight / total)
        return accumulated.to(tensors[0].dtype)

    return zip_map(average, *states)


def l2_norm(a: Mapping[str, Tensor]) -> float:
    """Returns the Euclidean norm over all tensors together, in float64.

    Example:
        >>> l2_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        5.0
    """
    return float(sum(float(x.to(torch.float64).square().sum()) for x in a.values()) ** 0.5)


def clip_norm(a: Mapping[str, Tensor], most: float) -> tuple[State, bool]:
    """Scales a state down to a Euclidean norm, over all tensors together, of at most ``most``.

    Args:
        a: A state, for example the delta of a training.
        most: The bound on the norm, positive.

    Returns:
        The state a · min(1, most / ‖a‖), and True if ‖a‖ was within the bound.

    Example:
        >>> clip_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, most=0.5)
        ({'a': tensor([0.3000]), 'b': tensor([0.4000])}, False)
    """
    norm = l2_norm(a)
    within = norm <= most
    return scale(a, 1.0 if within else most / norm), within


def count(a: Mapping[str, Tensor]) -> int:
    """Returns the number of scalars."""
    return sum(tensor.numel() for tensor in a.values())


def is_finite(a: Mapping[str, Tensor]) -> bool:
    """Returns True if no tensor contains a NaN or an infinity.

    A finite sum has only finite terms. If the sum is not finite, every term is tested, since the
    sum may have overflowed.
    """
    return all(
        math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all()) for tensor in a.values()
    )


def is_within(a: Mapping[str, Tensor], most: float) -> bool:
    """Returns True if the absolute values of all scalars are numbers of at most ``most``.

    Example:
        >>> a = {"w": torch.tensor([2.0, -3.0])}
        >>> is_within(a, 3.0), is_within(a, 2.9), is_within({"w": torch.tensor(math.nan)}, 3.0)
        (True, False, False)
    """
    return all(bool((tensor.abs() <= most).all()) for tensor in a.values())
