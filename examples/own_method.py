"""Write a fine-tuning method, check it, and compare it with LoRA.

    python own_method.py

Look at the columns "trained" and "sent" of the table: the method below trains only the biases and
normalisation layers of the last blocks, which are few numbers. Its name is the name of this file
and of the class, and it can be added to other parts: `own_method:LastBlocks+patch_embed`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

import fl_vitlora as fv
from fl_vitlora.finetuning.part import Part
from fl_vitlora.testing.method import check_method


@dataclass(frozen=True, kw_only=True)
class LastBlocks(Part):
    """The part of a method that trains biases and normalisation layers of the last blocks.

    Attributes:
        blocks: The number of trained blocks, counted from the end of the model. It is set with
            `finetuning.parameters.blocks`.
    """

    blocks: int = 2

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tensors that clients train and send."""
        whole: Any = model
        last = tuple(f"blocks.{number}." for number in range(len(whole.blocks))[-self.blocks :])
        names = [name for name, _ in model.named_parameters() if name.startswith(last)]
        return [name for name in names if name.endswith(".bias") or ".norm" in name]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True


if __name__ == "__main__":
    check_method(LastBlocks())  # raises an error that names the first broken rule
    found = fv.compare(
        {
            "compare": {"finetuning.method": ["own_method:LastBlocks+patch_embed", "lora", "head"]},
            "clients": 8,
            "rounds": 4,
        }
    )
    print(found.table())
