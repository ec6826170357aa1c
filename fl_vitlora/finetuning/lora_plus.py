"""LoRA+: LoRA whose matrices B have a larger learning rate than the matrices A.

The learning rate of B is `ratio` times the learning rate of A. With equal rates, and many inputs n,
the steps of A change the outputs far less than the steps of B should (sections 3 and 4 of the
paper). Weights, messages and merging are those of LoRA, so every strategy for LoRA works.

As for LoRA, the mean of the clients' B and A does not give the mean of their products B·A.

Source: Hayou, Ghosh, Yu, arXiv 2402.12354. The paper advises a ratio of about 16, and searches the
rate of A. In this module B has √ratio times the setting `learning_rate`, and A has the setting
divided by √ratio, so that a rate that suits LoRA suits LoRA+ as well. This choice is ours: on the
bundled model with its default rate, a rate of B that is 16 times larger does not converge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.groups import LORA_B, exact_group_of
from fl_vitlora.finetuning.lora_part import LoRA


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """The part of a fine-tuning method that adds LoRA, with another learning rate for B.

    Attributes:
        ratio: The learning rate of B divided by the learning rate of A.
    """

    ratio: float = setting(16.0, "Learning rate of B, divided by that of A.", "(0, inf)")

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
