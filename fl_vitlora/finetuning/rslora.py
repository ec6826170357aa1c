"""rsLoRA: LoRA whose product B·A is multiplied by α/√r instead of α/r.

    W' = W + α/√r · B·A,    r is the rank

With the factor α/r, the gradients of A and B become smaller as the rank grows. With α/√r the
gradients keep their size. Therefore larger ranks learn more. For r = 1 the two factors are equal.

As for LoRA, the mean of the clients' matrices B and A does not give the mean of their products B·A.
The factor is stored in the adapted layers (`LoRALinear.scale`), and strategies that merge products
use the stored factor. If clients have different ranks, the r in the factor is the setting
`finetuning.rank` for all clients, as for LoRA.

Source: Kalajdzievski, arXiv 2312.03732.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import nn

from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.finetuning.lora_part import LoRA


@dataclass(frozen=True, kw_only=True)
class RankStabilisedLoRA(LoRA):
    """The part of a fine-tuning method that adds LoRA with the factor α/√r."""

    def attach(self, model: nn.Module) -> None:
        """Adds a low-rank pair to each target layer, with random matrices A and zero matrices B."""
        alpha = self.alpha * math.sqrt(self.rank)  # because the layer divides alpha by r
        targets.attach(model, self.targets, partial(LoRALinear, rank=self.rank, alpha=alpha))
