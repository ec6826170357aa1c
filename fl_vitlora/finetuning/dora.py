"""DoRA: splits each row of a weight into its length and its direction.

The lengths are trained directly, and LoRA changes the directions:

    W' = m · (W + s·B·A) / ‖W + s·B·A‖,    m = ‖W‖ at the start,    s = α / r

The norm is computed for each row of the matrix; a row belongs to one output. When gradients are
computed, the norm counts as a constant, as in section 4.3 of the paper, which saves memory. At the
start B = 0 and m = ‖W‖, so that W' = W.

Source: Liu et al., arXiv 2402.09353. Here each adapted slice of a layer has its own lengths m.

n inputs, m outputs of a slice, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.lora import Adapter, cuts_of
from fl_vitlora.finetuning.method import Part

MAGNITUDE = ".magnitude"


class DoRAAdapter(Adapter):
    """The low-rank pair and the lengths m of one slice of a layer's outputs.

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        rank: The rank r.

    Attributes:
        magnitude: The lengths of the rows, (m,).
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__(weight.shape[1], weight.shape[0], rank)
        self.magnitude = nn.Parameter(weight.detach().norm(dim=1))

    def directed(self, weight: Tensor, scale: float) -> Tensor:
        """Returns the adapted weight W' of the slice, (m, n).

        Args:
            weight: The frozen weight W of the slice, (m, n).
            scale: The factor s.
        """
        moved = weight + scale * self.product()
        factor = self.magnitude / moved.detach().norm(dim=1)
        turned: Tensor = moved * factor.unsqueeze(1)
        return turned


class DoRALinear(nn.Module):
    """A frozen linear layer with DoRA on slices of its outputs.

    Like `LoRALinear`, this class has no attribute ``weight``.

    Args:
        base: The pre-trained layer.
        slices: For each adapter by name, the index of its first output and the index after its last
            output.
        rank: The rank r.
        alpha: The scale α.
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
                n: DoRAAdapter(base.weight[start:end], rank)
                for n, (start, end) in self.slices.items()
            }
        )
        self._cuts, self._places = cuts_of(base.out_features, list(self.slices.values()))

    def adapted(self) -> Tensor:
        """Returns the adapted weight of the whole layer, (outputs, n)."""
        parts = list(torch.split(self.base.weight, self._cuts))
        for place, name in zip(self._places, self.slices, strict=True):
            directed: Callable[[Tensor, float], Tensor] = self.adapters[name].directed  # type: ignore[assignment]
            parts[place] = directed(parts[place], self.scale)
        return torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs, (..., outputs), for the inputs x, (..., n)."""
        return F.linear(x, self.adapted(), self.base.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the plain linear layer with the adapted weight, which replaces its own."""
        self.base.weight.copy_(self.adapted())
        return self.base


@dataclass(frozen=True, kw_only=True)
class DoRA(Part):
    """The part of a fine-tuning method that adds DoRA to every block.

    The attribute `low_rank` of this part is False, because the product of a pair is not simply
    added to the weight. Strategies that merge or factor such products would give wrong results.

    Attributes:
        rank: The rank r of the pairs.
        alpha: The scale α; the product is multiplied by α / r.
        targets: The names of the layers of a block that get a pair (`targets.LAYERS`).
    """

    rank: int = setting(4, "Rank r of the low-rank matrices.", "[1, inf)")
    alpha: float = setting(8.0, "Scale of the low-rank matrices.", "(0, inf)")
    targets: tuple[str, ...] = ("q", "v")

    def attach(self, model: nn.Module) -> None:
        """Adds a low-rank pair and lengths m to each target layer."""
        targets.attach(model, self.targets, self.rank, self.alpha, layer=DoRALinear)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all matrices A and B, and of all lengths m."""
        endings = (".lora_A", ".lora_B", MAGNITUDE)
        return [name for name, _ in model.named_parameters() if name.endswith(endings)]

    def group(self, name: str) -> str:
        """Returns the group of a trained tensor; the lengths m belong to the group `lora`."""
        return LORA if name.endswith(MAGNITUDE) else super().group(name)

    def merge(self, model: nn.Module) -> None:
        """Replaces the adapted layers by plain layers with the adapted weights."""
        for path, module in list(model.named_modules()):
            if isinstance(module, DoRALinear):
                targets.put_module(model, path, module.merged())
