"""Many clients in one model: frozen weights shared, what is trained stacked, one slice a client.

The images of K clients pass through the model as one batch, client by client. Only few layers need
to know whose image is whose: the patch embedding, the adapters and the head. They are given a
leading dimension of clients; all else computes what it always does, on a larger batch, so that
small batches no longer waste a processor made for large ones.

K clients, b_k images of client k, B = Σ b_k images of the first of them that have any, C channels,
p patch size, N patches, D = C·p² entries a patch, W width, T tokens, n inputs, m outputs, r rank.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.groups import path_of
from fl_vitlora.state import State

PATCHES, HEAD, POSITION = "patch_embed.proj", "head", "pos_embed"
MULTIPLY = "multiply"  # the attribute of a layer that applies its trained matrices
FROZEN = 2  # dimensions of a matrix that all clients share
PER_PATCH = 4  # dimensions of stacked kernels where every patch has its own


class BatchSizes:
    """Whose images are where in a batch.

    Attributes:
        sizes: b_k of the first clients of the stack, in its order; the others have no images.
    """

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = ()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, batch: BatchSizes) -> Tensor:
    """Applies to the images of each client a linear layer of its own.

    Args:
        x: (B, ..., n).
        weight: (K, m, n).
        bias: (K, m), or none.
        batch: The batch sizes of the clients.

    Returns:
        (B, ..., m).
    """
    sizes = batch.sizes
    clients = len(sizes)
    weights = weight if len(weight) == clients else weight[:clients]
    if len(set(sizes)) == 1 and clients > 1:
        rows = x.reshape(clients, -1, x.shape[-1])
        out = torch.bmm(rows, weights.mT)
        if bias is not None:
            out = out + bias[:clients].unsqueeze(1)
        return out.reshape(*x.shape[:-1], -1)
    biases = [None] * clients if bias is None else bias[:clients].unbind()
    parts = zip(torch.split(x, list(sizes)), weights.unbind(), biases, strict=True)
    return torch.cat([F.linear(part, w, b) for part, w, b in parts])


class StackedPatches(nn.Module):
    """Stands in for the convolution of a patch embedding, or for `KernelPerPatch`.

    Attributes:
        weight: (K, W, C, p, p), or (K, N, W, D).
        bias: (K, W), or none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, like: Any, batch: BatchSizes) -> None:
        super().__init__()
        self.patch_size = like.patch_size if hasattr(like, "patch_size") else like.kernel_size
        self.batch = batch
        self.bias = None

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, W, H/p, W/p)."""
        rows, columns = (
            side // p for side, p in zip(images.shape[-2:], self.patch_size, strict=True)
        )
        patches = F.unfold(images, self.patch_size, stride=self.patch_size).mT  # (B, N, D)
        if self.weight.ndim == PER_PATCH:
            tokens = self._each_with_its_kernel(patches)
        else:
            tokens = linear(patches, self.weight.flatten(2), self.bias, self.batch)
        return tokens.mT.reshape(len(images), -1, rows, columns)

    def _each_with_its_kernel(self, patches: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, W)."""
        sizes = self.batch.sizes
        tokens = [
            torch.einsum("bnd,nwd->bnw", part, weight)
            for part, weight in zip(
                torch.split(patches, list(sizes)), self.weight.unbind(), strict=False
            )
        ]
        if self.bias is not None:
            tokens = [part + bias for part, bias in zip(tokens, self.bias.unbind(), strict=False)]
        return torch.cat(tokens)


class StackedHead(nn.Module):
    """Stands in for a linear head.

    Attributes:
        weight: (K, m, n).
        bias: (K, m), or none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, batch: BatchSizes) -> None:
        super().__init__()
        self.batch = batch
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ..., n) to (B, ..., m)."""
        return linear(x, self.weight, self.bias, self.batch)


class Stack:
    """A model of many clients, which shares the frozen weights of the model of one.

    Args:
        model: A prepared timm ViT that `can_stack`; what is frozen in it and changed later is
            changed here as well.

    Attributes:
        model: Maps the images of a batch to (B, classes).
    """

    def __init__(self, model: nn.Module) -> None:
        shared = {id(parameter): parameter for parameter in model.parameters()}
        self.model: nn.Module = copy.deepcopy(model, shared)
        self._trained = methods.trainable(model)
        self._batch = BatchSizes()
        self._positions: Tensor | None = None
        whole: Any = self.model
        whole.patch_embed.proj = StackedPatches(whole.patch_embed.proj, self._batch)
        whole.head = StackedHead(self._batch)
        for module in self.model.modules():
            if MULTIPLY in vars(module):
                vars(module)[MULTIPLY] = self._multiply
        self._original: Any = model

    @property
    def device(self) -> torch.device:
        """Tells where it computes."""
        return next(iter(self._trained.values())).device

    def load(
        self, states: Sequence[State], readers: Sequence[PatchReader]
    ) -> dict[str, nn.Parameter]:
        """Gives the model the trained tensors of its clients, and what each reads patches with.

        Args:
            states: K states.
            readers: K readers; their weights count where the patch embedding is frozen.

        Returns:
            The trained parameters by their names, each with a leading dimension K.
        """
        for place in (HEAD, PATCHES):
            for name, own in self._original.get_submodule(place).named_parameters(prefix=place):
                if name == f"{PATCHES}.weight" and name not in self._trained:
                    kernels = torch.stack([reader.weight.view_as(own) for reader in readers])
                    self._put(name, kernels.to(own.device))
                elif name not in self._trained:
                    self._put(name, own.detach().expand(len(states), *own.shape))
        parameters = {
            name: nn.Parameter(torch.stack([state[name] for state in states]).to(self.device))
            for name in self._trained
        }
        for name, parameter in parameters.items():
            self._put(path_of(name), parameter)
        self._positions = self._positions_of(readers)
        return parameters

    def set_batch_sizes(self, sizes: Sequence[int]) -> None:
        """Tells how many images of each client the next batch has, client by client.

        Args:
            sizes: The batch sizes of the first clients of the stack; the others have none.
        """
        self._batch.sizes = tuple(sizes)
        if self._positions is not None:
            each = zip(self._positions.unbind(), sizes, strict=False)
            places = [own.expand(images, *own.shape) for own, images in each]
            vars(self.model)[POSITION] = torch.cat(places)

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.ndim == FROZEN:
            return F.linear(x, weight)
        return linear(x, weight, None, self._batch)

    def _put(self, path: str, tensor: Tensor) -> None:
        """Puts a stacked tensor in its place."""
        place, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(place), name, tensor)

    def _positions_of(self, readers: Sequence[PatchReader]) -> Tensor | None:
        """Stacks whole position embeddings, (K, T, W); none where all read with the model's own."""
        own = readers[0].position
        if own is None or all(r.position is own or _same(r.position, own) for r in readers):
            vars(self.model).pop(POSITION, None)
            return None
        whole = self._original.pos_embed.detach()
        prefix = whole[0, : -len(own)]
        places = [r.position.to(self.device) for r in readers if r.position is not None]
        return torch.stack([torch.cat([prefix, place]) for place in places])


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one, other)


def can_stack(model: nn.Module) -> bool:
    """Returns True if everything that a prepared model trains can be stacked.

    A patch embedding of non-overlapping patches and a linear head can be, and so can the parts of a
    method that say so. The body of a model, a normalisation in its patch embedding, and positions
    for varying sizes cannot.
    """
    whole: Any = model
    told = methods.prepared(model)
    if told is None or not told.method.stackable:
        return False
    projection, head = whole.patch_embed.proj, getattr(whole, "head", None)
    if not isinstance(head, nn.Linear) or getattr(whole, "dynamic_img_size", False):
        return False
    if isinstance(projection, nn.Conv2d):
        plain = (projection.padding, projection.dilation, projection.groups) == ((0, 0), (1, 1), 1)
        if projection.stride != projection.kernel_size or not plain:
            return False
    places = (f"{PATCHES}.", f"{HEAD}.")
    layers = (module for module in model.modules() if MULTIPLY in vars(module))
    applied = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return all(
        name.startswith(places) or id(parameter) in applied
        for name, parameter in methods.trainable(model).items()
    )
