"""Visual prompt tuning (VPT): trained tokens, the prompts, are added to the tokens of every image.

The parts `vpt` (VPT-shallow) and `vpt_deep` (VPT-deep) are in this module. The prompts are p
trained tokens of width D. VPT-shallow adds prompts before the first block, and the blocks process
prompts like other tokens. VPT-deep has p separate prompts for each block. These prompts replace the
tokens that the previous block has computed from its prompts. The head reads the class token.

The prompts are added after the position embedding, so they do not depend on the order of the
patches. Therefore the prompts do not depend on the key of encrypted images. With VPT-shallow a
client sends p·D numbers, and with VPT-deep p·D numbers for each block. Prompts cannot be merged
into weights.

A client sends the prompts themselves, and no weight is computed from prompts. Therefore the mean of
the clients' prompts is exactly the mean of the clients' models.

Source: Jia et al., arXiv 2203.12119. As in the paper, the prompts are drawn uniformly between -v
and v with v² = 6 / (3·patch² + D). Because the prompts are not zero, the outputs of the model
change before training begins. The paper tries 1 to 200 prompts for each data set; the default of
this module is 10 prompts. As in the paper, the prompts stand between the class token and the
patches; if a model has several prefix tokens, the prompts follow the last prefix token.

Letters in shapes: p prompts, B images in a batch, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.own_modules import ModulePart, OwnModule
from fl_vitlora.finetuning.part import Part

NAME = "prompts"  # the name of the added module in a block
CHANNELS = 3  # the number of colours of an image, in the paper's formula for v
RELATIVE = ("rel_pos", "relative_position_bias_table")  # attributes of relative position biases


class Prompts(OwnModule):
    """The prompts before one block.

    Args:
        owner: The part that adds this module.
        count: The number p of prompts.
        width: The width D of the model.
        bound: The largest absolute value v of a prompt's entries at the start.
        prefix: The number of tokens before the patches, such as the class token.

    Attributes:
        tokens: The prompts, (p, D).
    """

    def __init__(self, owner: Part, count: int, width: int, bound: float, prefix: int) -> None:
        super().__init__(owner)
        self.prefix = prefix
        self.tokens = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))

    def insert(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inserts the prompts after the prefix tokens, (B, T + p, D), as a pre-hook of a block."""
        del block
        return (self._joined(args[0], 0), *args[1:])

    def replace(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the p tokens after the prefix tokens by prompts, as a pre-hook of a block."""
        del block
        return (self._joined(args[0], self.tokens.shape[-2]), *args[1:])

    def _joined(self, x: Tensor, removed: int) -> Tensor:
        """Returns tokens in which prompts replace the first `removed` tokens after the prefix."""
        own = self.for_each_image(self.tokens.flatten(-2), x.shape[0])
        shape = (x.shape[0], *self.tokens.shape[-2:])
        prompts = own.reshape(-1, *shape[1:]).expand(shape).to(x.dtype)
        return torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix + removed :]], dim=1)


@dataclass(frozen=True, kw_only=True)
class ShallowPrompts(ModulePart):
    """The part of a fine-tuning method that adds prompts before the first block.

    Attributes:
        prompts: The number p of prompts.
    """

    cannot_merge = "its prompts are further tokens, not weights"
    changes_start = "its prompts are further tokens, which the attention reads from the start"

    prompts: int = setting(10, "Number of prompts before a block.", "[1, inf)")

    def attach(self, model: nn.Module) -> None:
        """Adds prompts before the first block."""
        first = _blocks(model)[0]
        first.register_forward_pre_hook(self._added(model, first).insert)

    def _added(self, model: Any, block: nn.Module) -> Prompts:
        """Returns new prompts, which are added to a block as a module."""
        width = model.embed_dim
        bound = math.sqrt(6 / (CHANNELS * math.prod(model.patch_embed.patch_size) + width))
        made = Prompts(self, self.prompts, width, bound, model.num_prefix_tokens)
        block.add_module(NAME, made)
        return made


@dataclass(frozen=True, kw_only=True)
class DeepPrompts(ShallowPrompts):
    """The part of a fine-tuning method that uses separate prompts before every block."""

    def attach(self, model: nn.Module) -> None:
        """Adds prompts before the first block, and replaces them before every other block."""
        ShallowPrompts.attach(self, model)
        for block in targets.blocks_of(model)[1:]:
            block.register_forward_pre_hook(self._added(model, block).replace)


def _blocks(model: Any) -> list[nn.Module]:
    """Returns the blocks of a model to which prompts can be added.

    Raises:
        UserError: If the head does not read the class token, if the attention depends on the number
            of tokens, or if the model already has prompts.
    """
    blocks, kind = targets.blocks_of(model), type(model).__name__
    if getattr(model, "global_pool", "") != "token" or getattr(model, "attn_pool", None):
        raise UserError(
            f"prompts need a head that reads the class token, but the head of {kind} reads all "
            "tokens; use a model such as vit_base_patch16_224, or another --method"
        )
    attention = getattr(blocks[0], "attn", None)
    if getattr(model, "rope", None) or any(
        getattr(attention, name, None) is not None for name in RELATIVE
    ):
        raise UserError(
            f"prompts have no position, but the attention of {kind} needs a position for "
            "every token; use a model such as vit_base_patch16_224, or another --method"
        )
    if hasattr(blocks[0], NAME):
        raise UserError("two parts of the method add prompts; choose one of vpt and vpt_deep")
    return blocks
