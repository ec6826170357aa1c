"""Readouts: logits that the last normalisation and the head compute from the output of any block.

Letters in shapes: B images of a batch, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.targets import blocks_of


def check_readable(model: nn.Module, part: str) -> None:
    """Checks that a model has blocks, and a last normalisation and a head for readouts.

    Args:
        model: A timm model.
        part: The name of the part of the method that needs readouts.

    Raises:
        UserError: If the model has no blocks, or no normalisation and head after the blocks.
    """
    blocks_of(model)
    if not hasattr(model, "norm") or not hasattr(model, "forward_head"):
        raise UserError(
            f"{part} needs the model's attributes `norm` and `forward_head`, which "
            f"{type(model).__name__} lacks; use a plain ViT"
        )


def readout_losses(model: Any, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Returns the cross-entropies f_0 ... f_L of the readouts of a batch, (L + 1,).

    Args:
        model: A timm ViT.
        outputs: The input of the first block and the outputs of all blocks.
        labels: The numbers of the images' true classes, (B,).
    """
    logits = [readout(model, tokens) for tokens in outputs]
    return torch.stack([F.cross_entropy(one, labels) for one in logits])


def readout(model: Any, tokens: Tensor) -> Tensor:
    """Returns the logits that the model would have if its last block returned `tokens`."""
    logits: Tensor = model.forward_head(model.norm(tokens))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def block_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Records the input of the first block and the outputs of all blocks, inside a `with` block.

    Yields:
        A list. Each forward pass of the model replaces its contents by L + 1 tensors.
    """
    seen: list[Tensor] = []

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        seen[:] = inputs[:1]

    def add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        del module, inputs
        seen.append(out)

    blocks = blocks_of(model)
    with ExitStack() as stack:
        stack.callback(blocks[0].register_forward_pre_hook(begin).remove)
        for block in blocks:
            stack.callback(block.register_forward_hook(add).remove)
        yield seen
