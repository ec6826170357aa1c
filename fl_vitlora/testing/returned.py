"""Checks of the values that a strategy's methods return: names, shapes, types and finite numbers.

Letters in shapes: n inputs of a layer, m outputs of a layer, R the rank of a merged pair.
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
    """An error: the tested code of a strategy or of a fine-tuning method breaks its contract.

    The message says what was expected instead.
    """


def expect_plan(plan: ClientPlan, names: Collection[str]) -> None:
    """Checks that clients can carry out a plan.

    Args:
        plan: The plan of a strategy for a client in a round.
        names: The names of the tensors that clients train and send.

    Raises:
        ContractError: If the plan freezes all tensors, or contains a number out of range.
    """
    if all(name.endswith(plan.frozen) for name in names):
        raise ContractError("the plan freezes every tensor, so that clients would train nothing")
    if not (math.isfinite(plan.proximal_mu) and plan.proximal_mu >= 0):
        raise ContractError(f"plan.proximal_mu is {plan.proximal_mu}, expected a number >= 0")
    if plan.epochs is not None and (type(plan.epochs) is not int or plan.epochs < 1):
        raise ContractError(f"plan.epochs is {plan.epochs!r}, expected a whole number >= 1")
    if not (math.isfinite(plan.rate) and plan.rate > 0):
        raise ContractError(f"plan.rate is {plan.rate}, expected a factor > 0")


def expect_pair(returned: Any, half: str, form: str) -> tuple[Any, Any]:
    """Returns the two parts of a value that must be a pair.

    Args:
        returned: The value that a method of a strategy returned.
        half: The name of the method, for the error message.
        form: The expected form, for the error message, such as ``(model, state)``.

    Raises:
        ContractError: If the value is not a tuple of two parts.
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    raise ContractError(f"{half} returned a {type(returned).__name__}, expected {form}")


def expect_numbers(got: object, what: str) -> None:
    """Checks that a value is a dictionary of finite tensors; `what` names the value in errors."""
    if not isinstance(got, dict):
        raise ContractError(f"{what} is a {type(got).__name__}, expected a dictionary of tensors")
    for name, tensor in got.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ContractError(
                f"{what} has {name!r} of type {type(tensor).__name__}, expected tensors by name"
            )
        if not torch.isfinite(tensor).all():
            raise ContractError(f"{what} has NaN or infinity in {name}")


def expect_like(got: State, like: Mapping[str, Tensor], what: str) -> None:
    """Checks that the tensors `got` have the names and shapes of `like`.

    The text `what` names the tensors `got` in error messages.
    """
    if got.keys() != like.keys():
        differing = sorted(got.keys() ^ like.keys())
        raise ContractError(f"{what} has missing or unknown tensors: {differing[:3]}")
    for name, tensor in like.items():
        if got[name].shape != tensor.shape:
            shapes = tuple(got[name].shape), tuple(tensor.shape)
            raise ContractError(f"{what} has {name} of shape {shapes[0]}, expected {shapes[1]}")


def expect_types(got: State, like: Mapping[str, Tensor], what: str) -> None:
    """Checks that the tensors `got` have the types of `like`; `what` names `got` in errors."""
    for name, tensor in like.items():
        if got[name].dtype != tensor.dtype:
            raise ContractError(f"{what} has {name} as {got[name].dtype}, expected {tensor.dtype}")


def expect_kept(got: State, given: Mapping[str, Tensor], endings: tuple[str, ...]) -> None:
    """Checks that `aggregate` did not change tensors that start every round at initial values.

    Args:
        got: The tensors that `aggregate` returned.
        given: The tensors that `aggregate` was given.
        endings: The endings of the names of tensors that start every round at their initial values.
    """
    for name in (name for name in given if name.endswith(endings)):
        if not torch.equal(got[name], given[name]):
            raise ContractError(
                f"aggregate changed {name}, although plan.restarted names it; return it unchanged"
            )


def expect_model(
    new: Any, model: State, shapes: Mapping[str, Sequence[int]], restarted: tuple[str, ...]
) -> tuple[State, State]:
    """Checks the model that `aggregate` returned, and the merged pairs in it, if there are any.

    A merged pair is two factors whose product is added to a frozen weight.

    Args:
        new: The tensors that `aggregate` returned.
        model: The tensors of the global model before the round.
        shapes: The shapes of all tensors that clients have.
        restarted: The endings of names of tensors that must be returned unchanged.

    Returns:
        A pair of dictionaries: the tensors of the new global model by name, and the products of the
        merged pairs by path.

    Raises:
        ContractError: If a tensor has a wrong name, shape, type or value.
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
    """Checks that `should_stop` returned True or False."""
    if not isinstance(stop, bool):
        raise ContractError(f"should_stop returned {stop!r}, expected True or False")


def expect_metrics(metrics: object) -> None:
    """Checks the value that the method `metrics` returned.

    Each name must have a number, or a dictionary with a number for each client.
    """
    if not isinstance(metrics, Mapping):
        raise ContractError(
            f"metrics returned a {type(metrics).__name__}, expected a dictionary with a number "
            "for each name"
        )
    for name, value in metrics.items():
        numbers = value if isinstance(value, Mapping) else {0: value}
        for client, number in numbers.items():
            if not isinstance(client, int) or not isinstance(number, SupportsFloat):
                raise ContractError(
                    f"metric {name!r} is {value!r}, expected a number, or a dictionary with a "
                    "number for each client"
                )


def expect_penalty(penalty: object, what: str) -> Tensor:
    """Checks that a penalty is one finite number, and returns it as a tensor.

    Args:
        penalty: The penalty, a tensor or another number.
        what: A name for the penalty in error messages.

    Raises:
        ContractError: If the penalty is not one finite number.
    """
    value = torch.as_tensor(penalty)
    if value.shape != ():
        raise ContractError(f"{what} has shape {tuple(value.shape)}, expected one number")
    if not torch.isfinite(value):
        raise ContractError(f"{what} is {value.item()}, expected a finite number")
    return value


def expect_merged(pairs: State, shapes: Mapping[str, Sequence[int]]) -> State:
    """Checks that merged pairs belong to layers with low-rank pairs, and returns their products.

    Args:
        pairs: The tensors ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R).
        shapes: The shapes of all tensors that clients have.

    Returns:
        The products merged_B·merged_A (m, n) in float64, by path.

    Raises:
        ContractError: If a tensor of a pair is missing, or if a path or shape is wrong.
    """
    products = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in pairs):
        if path + lowrank.A not in shapes:
            raise ContractError(
                f"nothing can be merged at {path}: the model has no low-rank pair there"
            )
        for ending in MERGED:
            if path + ending not in pairs:
                raise ContractError(
                    f"{path + ending} is missing: aggregate must return merged_A and merged_B "
                    "together"
                )
        tall, wide = (pairs[path + ending] for ending in MERGED)
        n, m, rank = shapes[path + lowrank.A][1], shapes[path + lowrank.B][0], len(tall)
        if (tall.shape, wide.shape) != ((rank, n), (m, rank)):
            raise ContractError(
                f"{path}.merged_A and merged_B have shapes {tuple(tall.shape)} and "
                f"{tuple(wide.shape)}, expected (R, {n}) and ({m}, R)"
            )
        products[path] = wide.double() @ tall.double()
    return products
