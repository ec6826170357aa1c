"""Base classes for methods that replace the weight W of a slice by a function of W.

Most fine-tuning methods describe a new weight W' = f(W, trained tensors) for a matrix W of the
model. These methods need only two classes: a `SliceAdapter` that has the trained tensors and
computes W', and a `SlicePart` that makes an adapter for a given W. The base classes do everything
else: they find the layers, compute with W', merge, and train several clients in one batch.

A slice is a range of a layer's outputs. For example, the third of timm's layer `qkv` that computes
the queries is a slice, and the whole layer `proj` is also a slice. The module `targets` has the
names of the slices. This example is a complete method:

    >>> class Scaled(SliceAdapter):
    ...     def __init__(self, weight):
    ...         super().__init__()
    ...         self.gain = nn.Parameter(torch.ones(len(weight)))
    ...     def adapted(self, weight):
    ...         return self.gain.unsqueeze(-1) * weight
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Scaling(SlicePart):
    ...     def adapter(self, weight):
    ...         return Scaled(weight)
    >>> from fl_vitlora.testing.method import check_method
    >>> check_method(Scaling(targets=("v", "fc1")))

Tensors that are not trained must be buffers (`register_buffer`). Buffers are never sent, so the
server and all clients must compute equal buffers from the frozen weight, or draw them during
`attach`.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, K clients that share a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.groups import BODY, LORA, exact_group_of
from fl_vitlora.finetuning.lora import Multiply, cuts_of
from fl_vitlora.finetuning.part import Part


class SliceAdapter(nn.Module, ABC):
    """The trained tensors of one slice, with a function that computes the new weight W'."""

    @abstractmethod
    def adapted(self, weight: Tensor) -> Tensor:
        """Returns the weight W' of the slice, (m, n).

        If K clients share a batch, every trained tensor has a first dimension K, and the result
        must be (K, m, n). Therefore the code of `adapted` should count dimensions from the end, for
        example ``.norm(dim=-1)`` and ``.unsqueeze(-1)``. Buffers and the frozen weight do not have
        the dimension K.

        Args:
            weight: The frozen weight W of the slice, (m, n).
        """


class AdaptedLinear(nn.Module):
    """A frozen linear layer in which adapters replace the weight of slices.

    A model that reads the attribute ``weight`` of a layer directly would ignore the method. Like
    `LoRALinear`, this class has no attribute ``weight``, so that such a model raises an error.

    Args:
        base: The pre-trained layer.
        slices: A mapping from the name of each adapter to its slice. A slice is a pair: the index
            of the first output, and the index after the last output.
        owner: The part of the method that adds this layer.

    Attributes:
        multiply: A function that applies a weight to a tensor (B, T, n). When several clients are
            trained in one batch, the module `training.stacking` replaces `multiply` by a function
            that applies the own weight of each client.
    """

    def __init__(
        self, base: nn.Linear, slices: Mapping[str, tuple[int, int]], owner: SlicePart
    ) -> None:
        super().__init__()
        self.base = base
        self.owner = owner
        self.slices = dict(sorted(slices.items(), key=lambda item: item[1]))
        self.adapters = nn.ModuleDict(
            {n: owner.adapter(base.weight.detach()[a:b]) for n, (a, b) in self.slices.items()}
        )
        self.multiply: Multiply = F.linear
        self._cuts, self._places = cuts_of(base.out_features, list(self.slices.values()))

    def adapted(self) -> Tensor:
        """Returns the weight of the whole layer, (outputs, n), or (K, outputs, n) for K clients."""
        parts = list(torch.split(self.base.weight, self._cuts))
        for place, name in zip(self._places, self.slices, strict=True):
            make: Callable[[Tensor], Tensor] = self.adapters[name].adapted  # type: ignore[assignment]
            parts[place] = make(parts[place])
        leading = max((part.shape[:-2] for part in parts), key=len)
        return torch.cat([part.expand(*leading, *part.shape[-2:]) for part in parts], dim=-2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs, (..., outputs), for the inputs x, (..., n)."""
        out = self.multiply(x, self.adapted())
        return out if self.base.bias is None else out + self.base.bias

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Returns the weight of the whole layer as a new tensor, (outputs, n)."""
        return self.adapted().clone()

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Copies the adapted weight into the plain linear layer `base`, and returns this layer."""
        self.base.weight.copy_(self.adapted())
        return self.base


@dataclass(frozen=True, kw_only=True)
class SlicePart(Part):
    """A part of a fine-tuning method that replaces the weights of slices in every block.

    Attributes:
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    stackable = True

    targets: tuple[str, ...] = ("q", "v")

    @abstractmethod
    def adapter(self, weight: Tensor) -> SliceAdapter:
        """Returns a new adapter for a slice; at the start W' must equal W up to rounding.

        Args:
            weight: The frozen weight W of the slice, (m, n). The adapter must not keep or change
                this tensor.

        Raises:
            UserError: If the method does not fit the size of the slice.
        """

    def attach(self, model: nn.Module) -> None:
        """Adds an adapter to each target layer of every block."""
        targets.attach(model, self.targets, partial(AdaptedLinear, owner=self))

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all parameters of this part's adapters."""
        own = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, AdaptedLinear) and module.owner == self
            for parameter in module.adapters.parameters()
        }
        return [name for name, parameter in model.named_parameters() if id(parameter) in own]

    def group(self, name: str) -> str:
        """Returns the group of a tensor; tensors whose names show no group belong to `lora`."""
        group = exact_group_of(name)
        return LORA if group == BODY else group

    def merge(self, model: nn.Module) -> None:
        """Replaces the adapted layers by plain layers with the adapted weights."""
        for path, module in list(model.named_modules()):
            if isinstance(module, AdaptedLinear) and module.owner == self:
                targets.put_module(model, path, module.merged())
