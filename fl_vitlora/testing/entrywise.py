"""The check of a term of the local loss: a number, and a sum over the entries of the tensors.

Clients that share a batch have stacked tensors, (K, ...). The value of a term for them must be the
sum of its values for each client, so that the gradient of a slice is the gradient of that client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State
from fl_vitlora.testing.returned import ContractError, expect_numbers, expect_penalty

Penalty = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], "Tensor | float"]
TOLERANCE = 1e-9  # of the value, in float64


def expect_entrywise(
    penalty: Penalty, parameters: Sequence[State], anchors: Sequence[State]
) -> None:
    """Compares the penalty of clients that share a batch with the sum of their own penalties.

    Args:
        penalty: The term, a function of the trained tensors and of their values at the start.
        parameters: The trained tensors of each client, in float64.
        anchors: The values of these tensors when training began.

    Raises:
        ContractError: If the term is no finite number, or no sum over entries.
    """
    own = sum(_value(penalty, *pair) for pair in zip(parameters, anchors, strict=True))
    stacked = (
        {name: torch.stack([client[name] for client in clients]) for name in clients[0]}
        for clients in (parameters, anchors)
    )
    together = _value(penalty, *stacked)
    if abs(together - own) > TOLERANCE * (1 + abs(own)):
        raise ContractError(
            f"penalty of {len(parameters)} clients that share a batch is {together:.6g}, and the "
            f"sum of their own is {own:.6g}; it must be a sum over the entries of the tensors"
        )


def _value(penalty: Penalty, here: State, anchor: State) -> float:
    """Computes a penalty and its gradient, and expects finite numbers."""
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in here.items()}
    value = expect_penalty(penalty(parameters, anchor), "the penalty")
    if value.requires_grad:
        torch.autograd.backward(value)
    gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    expect_numbers(gradients, "the gradient of the penalty")
    return value.detach().item()
