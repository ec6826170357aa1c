"""LoRA+: LoRA whose matrices B have a larger learning rate than the matrices A.

The learning rate of B is `ratio` times the learning rate of A. With equal learning rates and many
inputs, training does not learn features efficiently, because the steps of B are too short compared
to the steps of A (sections 3 and 4 of the paper). The weights, the messages and the merging are the
same as for LoRA, so every strategy for LoRA works.

As for LoRA, the mean of the clients' matrices B and A does not give the mean of their products B·A.

Source: Hayou, Ghosh, Yu, arXiv 2402.12354. The paper advises a ratio of about 16, and searches for
the best learning rate of A. In this module the rate of B is the setting `learning_rate` times
√ratio, and the rate of A is the setting divided by √ratio. Therefore a setting that works for LoRA
also works for LoRA+. This is our own choice: on the bundled model, training does not converge if A
has the default rate and B has 16 times the default rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.groups import LORA_B, exact_group_of
from fl_vitlora.finetuning.lora_part import LoRA


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """The part of a fine-tuning method that adds LoRA with a larger learning rate for B.

    Attributes:
        ratio: The learning rate of B divided by the learning rate of A.
    """

    ratio: float = setting(
        16.0, "Learning rate of B divided by the learning rate of A.", "(0, inf)"
    )

    def rate(self, name: str) -> float:
        """Returns √ratio for a matrix B, and 1/√ratio for a matrix A.

        Args:
            name: The name of the tensor in the model.

        Example:
            >>> part = LoRAPlus(ratio=16.0)
            >>> part.rate("blocks.0.attn.qkv.adapters.q.lora_B"), part.rate("a.lora_A")
            (4.0, 0.25)
        """
        root = math.sqrt(self.ratio)
        return root if exact_group_of(name) == LORA_B else 1 / root
