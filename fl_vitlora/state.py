"""Arithmetic with dictionaries of tensors, for server and clients.

A `State` is a dictionary from names to tensors. The functions of this module do not change their
arguments. The results of the functions have the names of the first argument in the same order, and
never share memory with the first argument.
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
    """Applies a function to the tensors that have the same name in several states.

    Args:
        function: A function with one tensor from each state as its arguments.
        first: The state that sets the names and their order.
        *rest: Further states, which must have the same names.

    Returns:
        A new state: the result of the function for each name.

    Raises:
        ValueError: If the states do not all have the same names.
    """
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(
                "states differ in their tensors; only one of two states has these: "
                f"{sorted(first.keys() ^ other.keys())}"
            )
    return {name: function(first[name], *(other[name] for other in rest)) for name in first}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> State:
    """Returns the state a + b, added tensor by tensor."""
    return zip_map(torch.add, a, b)


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> State:
    """Returns the state a - b, subtracted tensor by tensor."""
    return zip_map(torch.sub, a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> State:
    """Returns the state factor · a: every tensor of `a`, multiplied by the factor."""
    return zip_map(lambda x: x * factor, a)


def clone(a: Mapping[str, Tensor]) -> State:
    """Returns a copy without gradients that shares no memory with ``a``."""
    return {name: tensor.detach().clone() for name, tensor in a.items()}


def mean(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> State:
    """Returns the weighted mean Σ wₖ·xₖ / Σ wₖ of K states xₖ with weights wₖ.

    The mean is computed in float64, and has the type of the states. The states are added in the
    given order. Therefore a caller that sorts its states always gets the same bits.

    Args:
        states: The K states, at least one, with equal names and shapes.
        weights: The K weights. No weight may be negative, and at least one must be positive.

    Returns:
        The mean of each tensor, by name.

    Raises:
        ValueError: If there is no state, or if the weights are not valid.

    Example:
        >>> mean([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [3, 1])
        {'w': tensor([1.])}
    """
    if not states or len(states) != len(weights):
        raise ValueError(
            f"{len(states)} states cannot be averaged with {len(weights)} weights; expected at "
            "least one state, and one weight for each state"
        )
    total = float(sum(weights))
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"expected weights of at least 0 with a positive sum, got {list(weights)}")

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
    """Scales a state down if its Euclidean norm ‖a‖, over all tensors together, is too large.

    Args:
        a: A state, for example the delta of a client.
        most: The largest norm that is allowed, positive.

    Returns:
        A pair: the state a · min(1, most / ‖a‖), and True if ‖a‖ was at most ``most``.

    Example:
        >>> clip_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, most=0.5)
        ({'a': tensor([0.3000]), 'b': tensor([0.4000])}, False)
    """
    norm = l2_norm(a)
    within = norm <= most
    return scale(a, 1.0 if within else most / norm), within


def count(a: Mapping[str, Tensor]) -> int:
    """Returns the number of scalars in all tensors of a state."""
    return sum(tensor.numel() for tensor in a.values())


def is_finite(a: Mapping[str, Tensor]) -> bool:
    """Returns True if no tensor contains a NaN or an infinity.

    For speed, the sum of each tensor is tested first: a finite sum has only finite terms. If a sum
    is not finite, every scalar is tested, because the sum of finite scalars can overflow.
    """
    return all(
        math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all()) for tensor in a.values()
    )


def is_within(a: Mapping[str, Tensor], most: float) -> bool:
    """Returns True if no scalar is NaN, and if no absolute value is larger than ``most``.

    Example:
        >>> a = {"w": torch.tensor([2.0, -3.0])}
        >>> is_within(a, 3.0), is_within(a, 2.9), is_within({"w": torch.tensor(math.nan)}, 3.0)
        (True, False, False)
    """
    flat = [tensor.flatten() for tensor in a.values() if tensor.numel()]
    if not flat:
        return True
    least, largest = torch.aminmax(torch.cat(flat))  # both are NaN if any scalar is NaN
    return -most <= float(least) and float(largest) <= most
