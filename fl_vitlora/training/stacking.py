"""A model for many clients, which share the frozen weights; the trained tensors are stacked.

The images of K clients pass through the model as one batch, in the order of the clients. Only the
layers with trained tensors need to know to which client an image belongs: the patch embedding, the
adapters (low-rank matrices) and the head. The tensors of trained layers get a first dimension for
the clients. All other layers compute the same as with one client, but on a larger batch, which uses
the processor better.

Letters in shapes: K clients, b_k images of client k, B = Σ b_k images in a batch, C channels, patch
size p, N patches, D = C·p² entries in a patch, width W of the model, T tokens, n inputs and m
outputs of a layer.
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
from fl_vitlora.finetuning.classifier import full_precision
from fl_vitlora.finetuning.groups import CONTROL, exact_group_of, path_of
from fl_vitlora.state import State

PATCHES, HEAD, POSITION = "patch_embed.proj", "head", "pos_embed"
MULTIPLY = "multiply"  # the attribute of a layer that applies its trained matrices
SIZES = "batch_sizes"  # the attribute of a layer that maps B to the images of each client
FROZEN = 2  # the number of dimensions of a matrix that all clients share
PER_PATCH = 4  # the number of dimensions of stacked kernels if every patch has its own kernel


class BatchSizes:
    """The number of images of each client in the present batch.

    Attributes:
        sizes: The numbers b_k of the first clients, in the order in which the clients are stacked.
            Clients beyond the length of `sizes` have no images in this batch.
    """

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = ()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, batch: BatchSizes) -> Tensor:
    """Applies the linear layer of each client to the inputs of this client.

    Args:
        x: The inputs, (B, ..., n).
        weight: The weights, (K, m, n).
        bias: The biases, (K, m); None if the layers have none.
        batch: The batch sizes of the clients.

    Returns:
        The outputs, (B, ..., m).
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
    """One layer that holds the patch embedding layers of K clients.

    This layer replaces the convolution of a model for one client, or the layer `KernelPerPatch`.

    Args:
        like: The layer that is replaced.
        batch: The batch sizes of the clients.

    Attributes:
        weight: The kernels, (K, W, C, p, p), or (K, N, W, D) if every patch has its own kernel.
        bias: The biases, (K, W); None if the layer has none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, like: Any, batch: BatchSizes) -> None:
        super().__init__()
        self.patch_size = like.patch_size if hasattr(like, "patch_size") else like.kernel_size
        self.batch = batch
        self.bias = None

    def forward(self, images: Tensor) -> Tensor:
        """Returns the tokens, (B, W, height/p, width/p), of images, (B, C, height, width)."""
        rows, columns = (
            side // p for side, p in zip(images.shape[-2:], self.patch_size, strict=True)
        )
        patches = F.unfold(images, self.patch_size, stride=self.patch_size).mT  # (B, N, D)
        if self.weight.ndim == PER_PATCH:
            tokens = self._kernel_per_patch(patches)
        else:
            tokens = linear(patches, self.weight.flatten(2), self.bias, self.batch)
        return tokens.mT.reshape(len(images), -1, rows, columns)

    def _kernel_per_patch(self, patches: Tensor) -> Tensor:
        """Returns the tokens, (B, N, W), of patches, (B, N, D), with one kernel for each patch."""
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
    """A layer with the linear heads of K clients.

    Args:
        batch: The batch sizes of the clients.

    Attributes:
        weight: The weights, (K, m, n).
        bias: The biases, (K, m); None if the head has none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, batch: BatchSizes) -> None:
        super().__init__()
        self.batch = batch
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (B, ..., m), of features, (B, ..., n), in full precision."""
        with full_precision(x.device):
            return linear(x.to(self.weight.dtype), self.weight, self.bias, self.batch)


class Stack:
    """A model for many clients, which uses the same frozen weights as the model for one client.

    Args:
        model: A timm ViT with a fine-tuning method, for which `can_stack` returns True. The two
            models share the frozen weights, so a later change of a frozen weight changes both
            models.

    Attributes:
        model: The model for many clients, which maps the images of a batch to logits, (B, classes).
        original: The model for one client.
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
            if SIZES in vars(module):
                vars(module)[SIZES] = self._sizes
        self.original: Any = model

    @property
    def device(self) -> torch.device:
        """Returns the device that computes."""
        return next(iter(self._trained.values())).device

    def load(
        self, states: Sequence[State], readers: Sequence[PatchReader]
    ) -> dict[str, nn.Parameter]:
        """Puts the tensors of K clients into the model.

        Args:
            states: The trained tensors of each client.
            readers: The patch reader of each client: its frozen patch embedding and position
                embedding. The patch embedding is used only if the method does not train it.

        Returns:
            The trained parameters by name, each with a first dimension K.
        """
        for place in (HEAD, PATCHES):
            for name, own in self.original.get_submodule(place).named_parameters(prefix=place):
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
        """Sets the number of images of each client in the next batch.

        Args:
            sizes: The numbers b_k of the first clients in the stack. Clients beyond the length of
                `sizes` have no images in this batch.
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

    def _sizes(self, images: int) -> tuple[int, ...]:
        """Returns the number of images of each client in the present batch of B images."""
        if sum(self._batch.sizes) != images:
            raise ValueError(
                f"got a batch of {images} images, expected {self._batch.sizes} from the clients"
            )
        return self._batch.sizes

    def _put(self, path: str, tensor: Tensor) -> None:
        """Replaces the tensor of the model that has the dotted name `path` by a stacked tensor."""
        place, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(place), name, tensor)

    def _positions_of(self, readers: Sequence[PatchReader]) -> Tensor | None:
        """Returns the position embeddings of all clients, (K, T, W), or None if all are equal."""
        own = readers[0].position
        if own is None or all(r.position is own or _same(r.position, own) for r in readers):
            vars(self.model).pop(POSITION, None)
            return None
        whole = self.original.pos_embed.detach()
        prefix = whole[0, : -len(own)]
        places = [r.position.to(self.device) for r in readers if r.position is not None]
        return torch.stack([torch.cat([prefix, place]) for place in places])


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one, other)


def can_stack(model: nn.Module) -> bool:
    """Returns True if several clients can be trained in one batch with all their trained tensors.

    A linear head can be stacked. A patch embedding can be stacked if its patches do not overlap. A
    part of a fine-tuning method can be stacked if its attribute `stackable` is true. Tensors that
    clients measure are not trained in one batch, so their layers need not be stackable. Three
    things cannot be stacked: tensors of the body of a model, a normalisation in the patch
    embedding, and position embeddings for images of different sizes.
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
    layers = (m for m in model.modules() if MULTIPLY in vars(m) or SIZES in vars(m))
    applied = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return all(
        name.startswith(places)
        or id(parameter) in applied
        or exact_group_of(name) == CONTROL
        or told.method.only_measures([name])
        for name, parameter in methods.trainable(model).items()
    )
