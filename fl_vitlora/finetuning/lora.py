"""LoRA: a frozen linear layer plus a trainable product of two thin matrices, W + s·B·A, s = α / r.

timm fuses query, key and value into one `qkv` layer of 3D outputs. An adapter on the query alone
adds to the first third of them, on the value alone to the last third; so one class serves every
layer: each adapter has a name and a slice of the layer's outputs.

Source: Hu et al., arXiv 2106.09685; on q and v of a ViT with r = 4, α = 8: MeLo, arXiv 2311.08236.

B batch, T tokens, n inputs, m outputs of a slice, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """The pair of thin matrices of one slice.

    Args:
        inputs: n.
        outputs: m.
        rank: r.

    Attributes:
        lora_A: (r, n), Kaiming-uniform.
        lora_B: (m, r), zero, so that training starts at the pre-trained function.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


class LoRALinear(nn.Module):
    """A frozen linear layer with adapters on slices of its outputs.

    It deliberately has no attribute ``weight``: a model that reaches past the layer for its weight,
    as timm's BEiT does, would silently ignore the adapters; so it fails instead.

    Args:
        base: The pre-trained layer.
        slices: Start and end of the outputs of each adapter, by its name, without overlaps.
        rank: r.
        alpha: α.
    """

    def __init__(
        self, base: nn.Linear, slices: Mapping[str, tuple[int, int]], rank: int, alpha: float
    ) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.slices = dict(sorted(slices.items(), key=lambda item: item[1]))
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(base.in_features, end - start, rank)
                for name, (start, end) in self.slices.items()
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, n) to (B, T, outputs of the layer)."""
        out: Tensor = self.base(x)
        lows = F.linear(x, torch.cat([a.lora_A for a in self._pairs()])).chunk(len(self.slices), -1)
        parts, reached = [], 0
        for (start, end), adapter, low in zip(
            self.slices.values(), self._pairs(), lows, strict=True
        ):
            parts += [out[..., reached:start]] if start > reached else []
            parts.append(out[..., start:end] + F.linear(low, adapter.lora_B) * self.scale)
            reached = end
        parts += [out[..., reached:]] if reached < out.shape[-1] else []
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the one linear layer that computes the same."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        layer.load_state_dict(self.base.state_dict())
        layer.to(self.base.weight)
        for (start, end), adapter in zip(self.slices.values(), self._pairs(), strict=True):
            layer.weight[start:end] += self.scale * adapter.lora_B @ adapter.lora_A
        return layer

    def _pairs(self) -> list[Adapter]:
        return [self.adapters[name] for name in self.slices]  # type: ignore[misc]
