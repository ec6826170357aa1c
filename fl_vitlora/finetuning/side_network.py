"""A network of low-rank mixers beside a frozen vision transformer.

The network reads the outputs of the transformer's blocks; the transformer does not use the outputs
of the network. The module `losa` has the equations and the source. The module `mixing` does the
computation, and needs tensors in which the tokens come before the images.

Letters in shapes: L blocks, B images, T tokens, S tokens that the classifier reads, D width, r
rank, n size of a mixer, K clients that share a batch, b largest number of images of a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.finetuning.classifier import full_precision
from fl_vitlora.finetuning.mixing import Mixing, refine

ONE = 2  # a matrix has two dimensions if a batch has one client, and three for several clients
Sizes = Callable[[int], tuple[int, ...]]  # maps B to the numbers of images of the clients


def one_client(images: int) -> tuple[int, ...]:
    """Returns the number of images of each client if all images belong to one client.

    Example:
        >>> one_client(8)
        (8,)
    """
    return (images,)


class Mixer(nn.Module):
    """One low-rank mixer g, which mixes the channels of each token or the tokens of each channel.

    Args:
        size: The number n of channels or tokens that are mixed.
        rank: The rank r of the low-rank matrices.
        tokens: True if the mixer works on tokens.
    """

    def __init__(self, size: int, rank: int, *, tokens: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(size)
        self.down = nn.Parameter(torch.empty(rank, size).uniform_(-bound, bound))
        self.down_bias = nn.Parameter(torch.zeros(rank))
        self.up = nn.Parameter(torch.zeros(size, rank))
        self.up_bias = nn.Parameter(torch.zeros(size))
        self.tokens = tokens

    def of_clients(self, clients: int, read: int | None) -> Mixing:
        """Returns the tensors of this mixer for the first K clients.

        Args:
            clients: The number K of clients.
            read: The number of first tokens that the mixer must return; None for all tokens.
        """
        tensors: list[Tensor] = [self.down, self.down_bias, self.up, self.up_bias]
        if self.down.ndim == ONE:
            tensors = [tensor.unsqueeze(0) for tensor in tensors]
        elif len(self.down) > clients:
            tensors = [tensor[:clients] for tensor in tensors]
        down, down_bias, up, up_bias = tensors
        if self.tokens and read is not None:
            up, up_bias = up[:, :read], up_bias[:, :read]
        return Mixing(down=down, down_bias=down_bias, up=up, up_bias=up_bias, tokens=self.tokens)


class SideNetwork(nn.Module):
    """The side network, which consists of one mixer for each block.

    Args:
        mixers: One mixer for each block.

    Attributes:
        batch_sizes: A function that maps the number B of images of a batch to the numbers of images
            of the clients. In a batch, the images are in the order of the clients.
    """

    def __init__(self, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.batch_sizes: Sizes = one_client

    def forward(self, outputs: Tensor, read: int | None = None) -> Tensor:
        """Returns the first S tokens of b_L + y_L, (B, S, D).

        Args:
            outputs: The outputs of all blocks, (B, L, T, D).
            read: The number S of tokens that the classifier reads; None for all tokens.
        """
        sizes = self.batch_sizes(outputs.shape[0])
        mixings = self._mixings(len(sizes), read)
        if not any(mixing.tokens for mixing in mixings):
            outputs = outputs[:, :, :read]  # channel mixers do not mix tokens
        blocks = tokens_first(outputs.to(mixings[0].down.dtype), sizes)
        with full_precision(outputs.device):
            found = refine(blocks, mixings, read or outputs.shape[2])
        return images_first(found, sizes)

    def _mixings(self, clients: int, read: int | None) -> list[Mixing]:
        """Returns the tensors of all mixers; only the last mixer returns fewer tokens."""
        mixers: list[Any] = list(self.mixers)
        first = [mixer.of_clients(clients, None) for mixer in mixers[:-1]]
        return [*first, mixers[-1].of_clients(clients, read)]


def tokens_first(outputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns the outputs of all blocks in the order that mixers need.

    A client with fewer than b images gets additional images of zeros.

    Args:
        outputs: The outputs of all blocks, (B, L, T, D).
        sizes: The number of images of each client, in the order of the batch.

    Returns:
        The outputs in the new order, (L, K, T, b, D).

    Example:
        >>> tokens_first(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1), (1, 2)).squeeze()
        tensor([[1., 0.],
                [2., 3.]])
    """
    blocks, tokens, width = outputs.shape[1:]
    ordered = outputs.new_empty(blocks, len(sizes), tokens, max(sizes), width)
    for number, own in enumerate(torch.split(outputs, list(sizes))):
        place = ordered[:, number]
        place[:, :, : own.shape[0]] = own.permute(1, 2, 0, 3)
        place[:, :, own.shape[0] :] = 0
    return ordered


def images_first(found: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns tokens in the order of the batch, (B, S, D), instead of the order of the mixers.

    Args:
        found: The tokens in the order of the mixers, (K, S, b, D). The tokens of images that
            `tokens_first` has added are left out of the result.
        sizes: The number of images of each client, in the order of the batch.
    """
    each = found.transpose(1, 2)  # (K, b, S, D)
    if min(sizes) == max(sizes):
        return each.flatten(0, 1)
    return torch.cat([own[:images] for own, images in zip(each.unbind(), sizes, strict=True)])


def block_outputs(model: nn.Module, images: Tensor, **given: Any) -> Tensor:
    """Returns the outputs of all blocks of a timm ViT, (B, L, T, D).

    Args:
        model: The model, whose backbone does not change.
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
