"""Checks of the values that a strategy's methods return: names, shapes, types and finite numbers.

n inputs and m outputs of a layer, R rank of a merged pair.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from fl_vitlora import lowrank
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan

MERGED = (lowrank.MERGED_A, lowrank.MERGED_B)


class ContractError(ValueError):
    """A strategy breaks its contract; the message names the problem and the expectation."""


def expect_plan(plan: ClientPlan, names: Collection[str]) -> None:
    """Checks a plan for clients that train and send tensors with these names."""
    if all(name.endswith(plan.frozen) for name in names):
        raise ContractError("the plan freezes every tensor; clients would train nothing")
    if not (math.isfinite(plan.proximal_mu) and plan.proximal_mu >= 0):
        raise ContractError(f"plan.proximal_mu is {plan.proximal_mu}, expected a number >= 0")
    if plan.epochs is not None and (type(plan.epochs) is not int or plan.epochs < 1):
        raise ContractError(f"plan.epochs is {plan.epochs!r}, not a whole number from 1")
    if not (math.isfinite(plan.rate) and plan.rate > 0):
        raise ContractError(f"plan.rate is {plan.rate}, not a positive factor")


def expect_pair(returned: Any, half: str, form: str) -> tuple[Any, Any]:
    """Returns the two parts of a returned value, which must be a pair."""
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    raise ContractError(f"{half} returned a {type(returned).__name__}, expected {form}")


def expect_numbers(got: object, what: str) -> None:
    """Checks that a value is a dictionary of finite tensors."""
    if not isinstance(got, dict):
        raise ContractError(f"{what} is a {type(got).__name__}, expected a dictionary of tensors")
    for name, tensor in got.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ContractError(
                f"{what} has {name!r} of type {type(tensor).__name__}, expected tensors by names"
            )
        if not torch.isfinite(tensor).all():
            raise ContractError(f"{what} has NaN or infinity in {name}")


def expect_like(got: State, like: Mapping[str, Tensor], what: str) -> None:
    """Checks that tensors have the names and shapes of other tensors."""
    if got.keys() != like.keys():
        differing = sorted(got.keys() ^ like.keys())
        raise ContractError(f"{what} has missing or unknown tensors: {differing[:3]}")
    for name, tensor in like.items():
        if got[name].shape != tensor.shape:
            shapes = tuple(got[name].shape), tuple(tensor.shape)
            raise ContractError(f"{what} has {name} of shape {shapes[0]}, expected {shapes[1]}")


def expect_types(got: State, like: Mapping[str, Tensor], what: str) -> None:
    """Checks that tensors have the types of other tensors with the same names."""
    for name, tensor in like.items():
        if got[name].dtype != tensor.dtype:
            raise ContractError(f"{what} has {name} as {got[name].dtype}, expected {tensor.dtype}")


def expect_kept(got: State, given: Mapping[str, Tensor], endings: tuple[str, ...]) -> None:
    """Checks that tensors that restart in every round were returned unchanged."""
    for name in (name for name in given if name.endswith(endings)):
        if not torch.equal(got[name], given[name]):
            raise ContractError(f"{name} was changed, although plan.restarted names it")


def expect_model(
    new: Any, model: State, shapes: Mapping[str, Sequence[int]], restarted: tuple[str, ...]
) -> tuple[State, State]:
    """Expects a new global model, and perhaps merged pairs beside it.

    Args:
        new: The tensors that `aggregate` returned.
        model: The global tensors that the round began with.
        shapes: The shapes of all tensors that clients have.
        restarted: The endings of tensors that must be returned unchanged.

    Returns:
        The new global tensors, and the products of the merged pairs by path.
    """
    expect_numbers(new, "the new model")
    pairs = {name: tensor for name, tensor in new.items() if name.endswith(MERGED)}
    products = expect_merged(pairs, shapes)
    rest = {name: tensor for name, tensor in new.items() if name not in pairs}
    expect_like(rest, model, "the new model")
    expect_types(rest, model, "the new model")
    expect_kept(rest, model, restarted)
    return rest, products


def expect_answer(stop: object) -> None:
    """Expects True or False from `should_stop`."""
    if not isinstance(stop, bool):
        raise ContractError(f"should_stop returned {stop!r}, expected True or False")


def expect_metrics(metrics: object) -> None:
    """Expects numbers by name, or by name numbers by client."""
    if not isinstance(metrics, Mapping):
        raise ContractError(f"metrics returned a {type(metrics).__name__}, not numbers by name")
    for name, value in metrics.items():
        numbers = value if isinstance(value, Mapping) else {0: value}
        for client, number in numbers.items():
            if not isinstance(client, int) or not isinstance(number, SupportsFloat):
                raise ContractError(
                    f"metric {name!r} is {value!r}, expected a number, or numbers by client"
                )


def expect_penalty(penalty: object, what: str) -> Tensor:
    """Expects one finite number, as a tensor or not, and returns it as a tensor."""
    value = torch.as_tensor(penalty)
    if value.shape != ():
        raise ContractError(f"{what} has shape {tuple(value.shape)}, expected one number")
    if not torch.isfinite(value):
        raise ContractError(f"{what} is {value.item()}")
    return value


def expect_merged(pairs: State, shapes: Mapping[str, Sequence[int]]) -> State:
    """Checks that every merged pair belongs to a layer, and multiplies the pairs.

    Args:
        pairs: The tensors ``PATH.merged_A`` and ``PATH.merged_B``.
        shapes: The shapes of all tensors that clients have.

    Returns:
        The products (m, n) by their paths, in float64.
    """
    products = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in pairs):
        if path + lowrank.A not in shapes:
            raise ContractError(f"nothing can be merged at {path}: it has no low-rank pair")
        for ending in MERGED:
            if path + ending not in pairs:
                raise ContractError(f"{path + ending} is missing: only pairs can be merged")
        tall, wide = (pairs[path + ending] for ending in MERGED)
        n, m, rank = shapes[path + lowrank.A][1], shapes[path + lowrank.B][0], len(tall)
        if (tall.shape, wide.shape) != ((rank, n), (m, rank)):
            raise ContractError(
                f"{path}.merged_A and merged_B have shapes {tuple(tall.shape)} and "
                f"{tuple(wide.shape)}, expected (R, {n}) and ({m}, R)"
            )
        products[path] = wide.double() @ tall.double()
    return products
