"""The aggregation gap of a fine-tuning method: the error of averaging tensors instead of weights.

A strategy averages the tensors θₖ of the clients. The outputs of a model depend on the weights
W'(θ) that the fine-tuning method computes from these tensors (for LoRA, W + B·A). If W' is linear
in θ, the average of the tensors gives the average of the weights. If W' is not linear in θ, there
is a gap. The gap is reported as a share of the change of the average weights:

    ‖Σ pₖ·W'(θₖ) - W'(θ_new)‖ / ‖Σ pₖ·W'(θₖ) - W'(θ_old)‖,    pₖ the share of client k's images

θ_old and θ_new are the server's tensors before and after the aggregation. All norms are Frobenius
norms over all adapted slices together. A slice is a part of a linear layer's weight that the method
changes, for example the query. For LoRA, `lowrank.relative_error` computes the same number.

Letters in shapes: n inputs and m outputs of an adapted slice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.slices import AdaptedLinear
from fl_vitlora.state import State
from fl_vitlora.strategy import Update
from fl_vitlora.strategy.moving import shares


@dataclass(frozen=True, kw_only=True)
class Place:
    """One adapted slice (a part of a layer's weight) of the server's model, in float64.

    Attributes:
        adapter: A copy of the adapter, the module whose method `adapted` computes W'.
        weight: The frozen weight W of the slice, (m, n).
        names: A mapping from the name of each tensor in the adapter to its name in messages.
    """

    adapter: nn.Module
    weight: Tensor
    names: Mapping[str, str]

    def adapted(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns the weight W' for the given exchanged tensors, (m, n), in float64."""
        own = {f"adapter.{local}": tensors[name].double() for local, name in self.names.items()}
        made: Tensor = functional_call(self.adapter, own, (self.weight,))
        return made


class _Adapted(nn.Module):
    """A module whose forward pass is the function `adapted` of an adapter.

    With this module, `functional_call` can compute W' for other tensors.
    """

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, weight: Tensor) -> Tensor:
        adapted: Tensor = self.adapter.adapted(weight)  # type: ignore[operator]
        return adapted


def places_of(model: nn.Module) -> list[Place]:
    """Returns a list of the adapted slices (parts of weights) of a model, which may be empty."""
    preparation = methods.prepared(model)
    names = {} if preparation is None else preparation.names
    exchanged = {id(p): names[n] for n, p in model.named_parameters() if n in names}
    found = []
    for layer in model.modules():
        if not isinstance(layer, AdaptedLinear):
            continue
        for name, (start, end) in layer.slices.items():
            tensors = layer.adapters[name].named_parameters()  # layers may share tensors
            own = {n: exchanged[id(p)] for n, p in tensors if id(p) in exchanged}
            adapter = _Adapted(copy.deepcopy(layer.adapters[name])).double().cpu()
            weight = layer.base.weight.detach()[start:end].double().cpu()
            found.append(Place(adapter=adapter.requires_grad_(False), weight=weight, names=own))
    return found


@torch.no_grad()
def aggregation_gap(
    places: Sequence[Place], before: State, updates: Sequence[Update], new: State
) -> float | None:
    """Returns the aggregation gap of a round; 0 for an exact aggregation.

    Args:
        places: The adapted slices of the server's model.
        before: The exchanged tensors before the round.
        updates: The updates of the clients.
        new: The exchanged tensors after the aggregation.

    Returns:
        The gap, as a share of the change of the average weights. The result is None in three cases:
        if there are no adapted slices, if the server does not know all tensors of each client
        (because of secure aggregation or personal tensors), or if no weight has changed.
    """
    lacking = any(name not in before for place in places for name in place.names.values())
    if not places or lacking or any(update.members > 1 for update in updates):
        return None
    clients = [
        {name: before[name].double() + delta.double() for name, delta in update.delta.items()}
        for update in updates
    ]
    error = movement = 0.0
    for place in places:
        mean = torch.zeros_like(place.weight)
        for share, tensors in zip(shares(updates), clients, strict=True):
            mean += share * place.adapted({**before, **tensors})
        error += float((mean - place.adapted(new)).square().sum())
        movement += float((mean - place.adapted(before)).square().sum())
    return (error / movement) ** 0.5 if movement else None
