"""A network of low-rank mixers beside a frozen vision transformer.

The network reads the outputs of the transformer's blocks; the transformer does not read anything
from the network. The module `losa` has the equations and the source.

L blocks, B images, T tokens, D width, r rank, n size of a mixer, K clients that share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.finetuning.lora import Multiply


class Mixer(nn.Module):
    """One low-rank mixer g, of the channels of each token or of the tokens of each channel.

    Args:
        size: The number n of channels or tokens.
        rank: The rank r.
        tokens: True if the mixer works on tokens.

    Attributes:
        multiply: A function that applies a matrix to the last dimension of a tensor (B, ..., n).
            If several clients share a batch, it applies each client's own matrix.
    """

    def __init__(self, size: int, rank: int, *, tokens: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(size)
        self.down = nn.Parameter(torch.empty(rank, size).uniform_(-bound, bound))
        self.down_bias = nn.Parameter(torch.zeros(rank))
        self.up = nn.Parameter(torch.zeros(size, rank))
        self.up_bias = nn.Parameter(torch.zeros(size))
        self.multiply: Multiply = F.linear
        self.tokens = tokens

    def numbers(self) -> Tensor:
        """Returns the p numbers that the mixer needs once for each image, (p,) or (K, p)."""
        whole = [self.down.flatten(-2), self.up.flatten(-2), self.up_bias] if self.tokens else []
        return torch.cat([self.down_bias, *whole], dim=-1)

    def forward(self, refined: Tensor, output: Tensor, numbers: Tensor) -> Tensor:
        """Returns y + g(b + y), (B, T, D).

        Args:
            refined: The sum y of the mixers before this one, (B, T, D).
            output: The output b of the block, (B, T, D).
            numbers: For each image the result of `numbers` of its client, (B, p).
        """
        h, rank = output + refined, self.down_bias.shape[-1]
        bias, whole = numbers[:, :rank], numbers[:, rank:]
        if not self.tokens:
            low = _with_ones(F.gelu(self.multiply(h, self.down) + bias.unsqueeze(1)), dim=2)
            return refined + self.multiply(low, _joined(self.up, self.up_bias))
        size = self.up_bias.shape[-1]
        down, up, up_bias = torch.split(whole, [rank * size, size * rank, size], dim=-1)
        low = torch.baddbmm(bias.unsqueeze(-1), down.reshape(-1, rank, size), h)
        joined = _joined(up.reshape(-1, size, rank), up_bias)
        return torch.baddbmm(refined, joined, _with_ones(F.gelu(low), dim=1))


class SideNetwork(nn.Module):
    """The mixers of all blocks.

    A mixer of tokens multiplies with matrices from the left, which has no stacked form. So each
    image of a batch gets the matrices of its client. One product with a column does this for all
    mixers: a matrix of one column, times 1, is the column.

    Args:
        mixers: One mixer for each block.

    Attributes:
        multiply: See `Mixer`.
    """

    def __init__(self, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.multiply: Multiply = F.linear

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns b_L + y_L, (B, T, D), for the outputs of all blocks, (B, L, T, D)."""
        own: list[Tensor] = [mixer.numbers() for mixer in self.mixers]  # type: ignore[operator]
        column = torch.cat(own, dim=-1).unsqueeze(-1)
        each = self.multiply(outputs.new_ones(len(outputs), 1), column)
        numbers = torch.split(each, [one.shape[-1] for one in own], dim=-1)
        refined = torch.zeros_like(outputs[:, 0])
        for mixer, output, given in zip(self.mixers, outputs.unbind(1), numbers, strict=True):
            refined = mixer(refined, output, given)
        return outputs[:, -1] + refined


def _joined(matrix: Tensor, bias: Tensor) -> Tensor:
    """Returns a matrix with its bias as the last column, (..., n, r + 1)."""
    return torch.cat([matrix, bias.unsqueeze(-1)], dim=-1)


def _with_ones(low: Tensor, dim: int) -> Tensor:
    """Appends a one to every vector along a dimension, for the bias that `_joined` appended."""
    return torch.cat([low, torch.ones_like(low.narrow(dim, 0, 1))], dim=dim)


def block_outputs(model: nn.Module, images: Tensor, **given: Any) -> Tensor:
    """Returns the outputs of all blocks of a timm ViT, (B, L, T, D).

    Args:
        model: The model; its backbone is not changed.
        images: The normalised images, (B, C, H, W).
        given: Further arguments of timm's function `forward_features`, such as masks.
    """
    whole: Any = model
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
        for block in whole.blocks
    ]
    try:
        type(whole).forward_features(whole, images, **given)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(outputs, dim=1)
