"""The check of a penalty, a term of the local loss: it must be a sum over tensor entries.

Several clients can train in one batch. In a batch of several clients, the tensors of K clients are
stacked, with shape (K, ...). The penalty of the stacked tensors must be the sum of the clients' own
penalties. Then each client gets the same gradient as if it trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State
from fl_vitlora.testing.returned import ContractError, expect_numbers, expect_penalty

Penalty = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], "Tensor | float"]
TOLERANCE = 1e-9  # the largest relative difference, in float64


def expect_entrywise(
    penalty: Penalty, parameters: Sequence[State], anchors: Sequence[State]
) -> None:
    """Compares the penalty of clients that share a batch with the sum of their own penalties.

    Args:
        penalty: The penalty, a function of the trained tensors and of their values at the start.
        parameters: The trained tensors of each client, in float64.
        anchors: The values that these tensors had when the training of a round began, in the same
            order.

    Raises:
        ContractError: If the penalty is not a finite number, or not a sum over entries.
    """
    own = sum(_value(penalty, *pair) for pair in zip(parameters, anchors, strict=True))
    stacked = (
        {name: torch.stack([client[name] for client in clients]) for name in clients[0]}
        for clients in (parameters, anchors)
    )
    together = _value(penalty, *stacked)
    if abs(together - own) > TOLERANCE * (1 + abs(own)):
        raise ContractError(
            f"penalty of {len(parameters)} clients that share a batch is {together:.6g}, but the "
            f"sum of their own penalties is {own:.6g}; the two must be equal, so a penalty must be "
            "a sum over the entries of the tensors"
        )


def _value(penalty: Penalty, here: State, anchor: State) -> float:
    """Returns the value of a penalty.

    Raises an error if the value or its gradient is not finite.
    """
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in here.items()}
    value = expect_penalty(penalty(parameters, anchor), "the penalty")
    if value.requires_grad:
        torch.autograd.backward(value)
    gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    expect_numbers(gradients, "the gradient of the penalty")
    return value.detach().item()
