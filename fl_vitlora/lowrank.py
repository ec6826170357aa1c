"""The algebra of low-rank pairs: operations on the products B·A of LoRA's matrices.

A pair is two tensors with one path (the beginning of their names): ``PATH.lora_A`` (r, n) and
``PATH.lora_B`` (m, r). The weight of their layer is W + s·B·A. The factor s = α / r is the same for
clients of all ranks. Therefore a client's rank is reduced by dropping the last rows of A and the
last columns of B. The rank r is small compared with m and n. Therefore a function of this module
computes the large product B·A only if its docstring says so.

Letters: r is the rank of the model and rₖ the rank of client k. K is the number of clients. nₖ is
the number of images of client k, and pₖ = nₖ / Σn. m and n are the numbers of outputs and inputs of
a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State
from fl_vitlora.strategy import Update, shares

A, B, R = ".lora_A", ".lora_B", ".lora_R"
MERGED_A, MERGED_B = ".merged_A", ".merged_B"


def paths(names: Iterable[str]) -> list[str]:
    """Returns the paths (beginnings of the names) of all pairs, in the order of the names.

    Example:
        >>> paths(["a.lora_A", "a.lora_B", "head.bias"])
        ['a']
    """
    return [name.removesuffix(A) for name in names if name.endswith(A)]


def trained(model: State, update: Update) -> State:
    """Returns a client's low-rank matrices after its training, in float64.

    Args:
        model: The tensors at the beginning of the round.
        update: The update of the client. A matrix without a delta was not trained in this round.

    Returns:
        All matrices A and B, with the names and shapes of the model. Rows and columns beyond the
        client's rank are zero.
    """
    found = {}
    for name in (name for name in model if name.endswith((A, B))):
        start = _zero_beyond(name, model[name], update.rank).double()
        found[name] = start + update.delta[name].double() if name in update.delta else start
    return found


def stack(weights: Sequence[float], clients: Sequence[State], path: str) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum Σ wₖ·Bₖ·Aₖ of the clients' products as one pair of factors.

    The pair is [w₁A₁; w₂A₂; …] (Σrₖ, n) and [B₁, B₂, …] (m, Σrₖ).

    Args:
        weights: The weight wₖ of each client.
        clients: The matrices of each client, as `trained` returns them.
        path: The path of the pair.

    Example:
        >>> one = {"a.lora_A": torch.tensor([[1.0, 2.0]]), "a.lora_B": torch.tensor([[3.0]])}
        >>> stack([0.5, 0.5], [one, one], "a")
        (tensor([[0.5000, 1.0000],
                [0.5000, 1.0000]]), tensor([[3., 3.]]))
    """
    tall = torch.cat([w * client[path + A] for w, client in zip(weights, clients, strict=True)])
    wide = torch.cat([client[path + B] for client in clients], dim=1)
    return tall, wide


def merged(weights: Sequence[float], clients: Sequence[State]) -> State:
    """Returns the sum Σ wₖ·Bₖ·Aₖ of every pair, as tensors that `aggregate` may return.

    If a strategy's `aggregate` returns these tensors, their product is added to the frozen weight.
    The tensors are in float32. If there are no clients, the result is empty.

    Args:
        weights: The weight wₖ of each client.
        clients: The matrices of each client, as `trained` returns them.

    Example:
        >>> one = {"a.lora_A": torch.tensor([[1.0, 2.0]]), "a.lora_B": torch.tensor([[3.0]])}
        >>> merged([0.5], [one])
        {'a.merged_A': tensor([[0.5000, 1.0000]]), 'a.merged_B': tensor([[3.]])}
    """
    found = {}
    for path in paths(clients[0]) if clients else []:
        tall, wide = stack(weights, clients, path)
        found[path + MERGED_A], found[path + MERGED_B] = tall.float(), wide.float()
    return found


def factors(tall: Tensor, wide: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns factors A and B of a given rank whose product B·A is nearest to wide·tall.

    Let U·S·Vᵀ be the singular value decomposition of wide·tall, cut to the rank. A is Vᵀ with the
    shape (rank, n), and B is U·S with the shape (m, rank). The singular values are in decreasing
    order. Therefore the first rows of A and columns of B are the nearest factors of a smaller rank.
    The sign of each row is made unique: its entry with the largest absolute value is positive. The
    large product wide·tall is not computed. The QR decompositions of wide and of tallᵀ reduce the
    problem to a matrix of at most (q, q), which has the same singular values.

    Args:
        tall: The right factor (q, n), in float64.
        wide: The left factor (m, q), in float64.
        rank: The rank of the result, at most q, m and n.

    Returns:
        A pair: A and B, in float64. The rows of A are orthonormal, even if the product has a lower
        rank.

    Example:
        >>> A, B = factors(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.eye(2), 1)
        >>> A.tolist(), B.tolist()
        ([[1.0, 0.0]], [[0.0], [2.0]])
    """
    outputs, inputs = torch.linalg.qr(wide), torch.linalg.qr(tall.T)
    left, sizes, right = torch.linalg.svd(outputs.R @ inputs.R.T, full_matrices=False)
    rows = right[:rank] @ inputs.Q.T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    return signs * rows, outputs.Q @ left[:, :rank] * sizes[:rank] * signs.T


def refactored(model: State, weights: Sequence[float], clients: Sequence[State]) -> State:
    """Approximates Σ wₖ·Bₖ·Aₖ of every pair by a pair of the model's rank, shapes and types.

    The pair consists of the two factors that `factors` returns. If the sum is zero, its singular
    vectors are not defined; A is then the model's A, and B is zero.

    Args:
        model: The tensors at the beginning of the round.
        weights: The weight wₖ of each client.
        clients: The matrices of each client, as `trained` returns them.

    Returns:
        The matrices A and B of all pairs, by name.

    Example:
        >>> model = {"a.lora_A": torch.tensor([[1.0, 1.0]]), "a.lora_B": torch.tensor([[0.0]])}
        >>> one = {"a.lora_A": torch.tensor([[3.0, 4.0]]), "a.lora_B": torch.tensor([[1.0]])}
        >>> refactored(model, [2.0], [one])
        {'a.lora_A': tensor([[0.6000, 0.8000]]), 'a.lora_B': tensor([[10.]])}
    """
    found = {}
    for path in paths(model):
        start = model[path + A]
        rows, columns = factors(*stack(weights, clients, path), rank=len(start))
        found[path + A] = rows.to(start.dtype) if columns.any() else start.clone()
        found[path + B] = columns.to(model[path + B].dtype)
    return found


def cut(state: Mapping[str, Tensor], rank: int | None) -> State:
    """Returns tensors in which only the first `rank` rows of every A and columns of B are left.

    If the rank is None, all rows and columns are kept. Tensors that are not A or B are copied.
    """
    return {name: tensor[_within(name, tensor, rank)].clone() for name, tensor in state.items()}


def pad(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Fills tensors that `cut` returned with zeros, so that they have the shapes of ``like``."""
    padded = {}
    for name, tensor in state.items():
        padded[name] = tensor.new_zeros(like[name].shape)
        padded[name][tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def aggregation_error(model: State, updates: Sequence[Update], new: State) -> tuple[float, float]:
    """Measures the distance of a new model's products from the mean of the clients' products.

    In contrast to other functions of this module, this function computes the products B·A.

    Args:
        model: The tensors at the beginning of the round.
        updates: The updates of the clients.
        new: The tensors that a strategy computed from the updates, including merged pairs.

    Returns:
        A pair of numbers: the error ‖Σ pₖ·Bₖ·Aₖ - (B·A + merged_B·merged_A)‖, and the movement of
        the mean product in the round, ‖Σ pₖ·Bₖ·Aₖ - B₀·A₀‖. B and A are the matrices of `new`, and
        B₀ and A₀ the matrices of `model`. The two numbers are Frobenius norms over all low-rank
        pairs together. The products are not multiplied by LoRA's factor s = α / r.
    """
    weights = torch.tensor(shares(updates), dtype=torch.float64).view(-1, 1, 1)
    error = movement = 0.0
    for path in paths(model):
        tall = (weights * _ends(model, updates, path + A)).flatten(0, 1)
        wide = _ends(model, updates, path + B).transpose(0, 1).flatten(1)
        exact = wide @ tall
        got = new[path + B].double() @ new[path + A].double()
        if path + MERGED_A in new:
            got = got + new[path + MERGED_B].double() @ new[path + MERGED_A].double()
        error += float((exact - got).square().sum())
        start = model[path + B].double() @ model[path + A].double()
        movement += float((exact - start).square().sum())
    return error**0.5, movement**0.5


def relative_error(
    model: State, updates: Sequence[Update], new: State, merged: State
) -> float | None:
    """Returns the aggregation error as a share of the round's movement.

    The share is ‖mean - result‖ / ‖mean - before‖: mean is the mean of the clients' products,
    result is the product of the new model, and before is the product of the old model. The share is
    0 for an exact aggregation, and 1 for an aggregation that changes nothing. The mean includes the
    updates of hostile clients. Therefore a robust strategy, which excludes these updates, has a
    large error although the strategy works as intended.

    Args:
        model: The tensors at the beginning of the round.
        updates: The updates of the clients.
        new: The tensors of the model after the round, by name.
        merged: The pairs that were added to frozen weights.

    Returns:
        The share, or None if the share is not defined: if the model has no complete pair B·A
        (clients may keep one of the two matrices), if only the sum of the clients' updates is
        known, or if no product changed.
    """
    whole = [path for path in paths(model) if path + B in model and path + R not in model]
    if not whole or any(update.members > 1 for update in updates):
        return None
    pairs = {path + end: model[path + end] for path in whole for end in (A, B)}
    error, movement = aggregation_error(pairs, updates, {**new, **merged})
    return error / movement if movement else None


def _within(name: str, tensor: Tensor, rank: int | None) -> tuple[slice, ...]:
    """Returns the index of the part of a tensor that a client of a smaller rank has."""
    if rank is not None and name.endswith(A):
        return (slice(rank),)
    if rank is not None and name.endswith(B):
        return (slice(None), slice(rank))
    return (slice(None),) * tensor.ndim


def _ends(model: State, updates: Sequence[Update], name: str) -> Tensor:
    """Returns one matrix after training, for all clients, stacked to shape (K, …).

    In contrast, `trained` returns all matrices A and B of one client.
    """
    ranks = {update.rank for update in updates}
    start = {rank: _zero_beyond(name, model[name], rank).double() for rank in ranks}
    rests = torch.zeros_like(model[name])
    deltas = torch.stack([update.delta.get(name, rests) for update in updates])
    return torch.stack([start[update.rank] for update in updates]) + deltas


def _zero_beyond(name: str, tensor: Tensor, rank: int | None) -> Tensor:
    left = torch.zeros_like(tensor)
    inside = _within(name, tensor, rank)
    left[inside] = tensor[inside]
    return left
