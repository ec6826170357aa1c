"""Reads and replaces the patch embedding and the position embedding of a timm ViT.

The patch embedding and the position embedding together are called the patch reader.

Letters in shapes: B images, C channels, H × W pixels, p patch size, N patches, D = C·p² entries per
patch, W width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import read_sealed, write_sealed

READER_FILE = "reader.safetensors"
KEY_ID = "key_id"
WEIGHT, POSITION = "patch_embed.proj.weight", "pos_embed"


class KernelPerPatch(nn.Module):
    """Replaces the convolution of a patch embedding if every patch has its own kernel.

    Args:
        weight: The kernels (N, W, D) of all patches.
        bias: The bias (W,), or None.
        patch_size: Height and width p of a patch in pixels.

    Attributes:
        weight: The kernels (N, W, D) of all patches.
        bias: The bias (W,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.patch_size = patch_size
        self.in_channels = weight.shape[-1] // (patch_size[0] * patch_size[1])

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to tokens (B, W, H/p, W/p), as a convolution would."""
        rows, columns = (
            side // p for side, p in zip(images.shape[-2:], self.patch_size, strict=True)
        )
        patches = F.unfold(images, self.patch_size, stride=self.patch_size)  # (B, D, N)
        tokens = torch.einsum("bdn,nwd->bwn", patches, self.weight)
        if self.bias is not None:
            tokens = tokens + self.bias.unsqueeze(-1)
        return tokens.reshape(images.shape[0], -1, rows, columns)


def reader_of(backbone: Backbone) -> PatchReader:
    """Copies the patch reader of a model to the CPU.

    Args:
        backbone: The model, which is any timm ViT with a patch embedding.

    Returns:
        The patch reader, whose `position` is None if the model adds no position embedding to its
        tokens, or if the model also has other position information, such as relative positions.
    """
    model: Any = backbone.model
    weight = model.patch_embed.proj.weight.detach().to("cpu", copy=True)
    position = None
    if _adds_positions(model):
        position = _patch_positions(model).detach().to("cpu", copy=True)
    return PatchReader(weight=_as_matrix(weight), position=position)


@torch.no_grad()
def put_reader(model: nn.Module, reader: PatchReader) -> None:
    """Replaces the patch reader of a model in place. Frozen parameters stay frozen."""
    whole: Any = model
    projection = whole.patch_embed.proj
    if reader.weight.ndim == 3 and not isinstance(projection, KernelPerPatch):
        whole.patch_embed.proj = _widened(projection, reader.weight)
    else:
        projection.weight.copy_(reader.weight.view_as(projection.weight))
    if reader.position is not None:
        _patch_positions(whole).copy_(reader.position)


def exchanged_reader(state: Mapping[str, Tensor], patches: int) -> PatchReader:
    """Builds a patch reader from the exchanged tensors of a model, or of a difference of models.

    Args:
        state: Tensors by their names in the model. The patch embedding must be among these tensors.
        patches: The number N of patches of an image.

    Returns:
        The patch reader. If the position embedding is not among the tensors, `position` has the
        shape (N, 0).
    """
    weight = state[WEIGHT]
    position = state[POSITION][0, -patches:] if POSITION in state else weight.new_empty(patches, 0)
    return PatchReader(weight=_as_matrix(weight), position=position)


def with_exchanged_reader(state: Mapping[str, Tensor], reader: PatchReader) -> State:
    """Returns a copy of exchanged tensors in which another patch reader replaces the old one."""
    changed = {WEIGHT: reader.weight.reshape(state[WEIGHT].shape)}
    if POSITION in state and reader.position is not None:
        others = state[POSITION][:, : -len(reader.position)]
        changed[POSITION] = torch.cat([others, reader.position.unsqueeze(0)], dim=1)
    return {**state, **changed}


def write_reader(path: Path, reader: PatchReader, key_id: str = "") -> None:
    """Writes a patch reader to a file that only its owner can read.

    Args:
        path: The path of the file.
        reader: The patch reader. An adapted patch reader reveals the key to everyone who knows the
            original model.
        key_id: The id of the key to which the patch reader is adapted; empty if it is not adapted.
    """
    tensors = {"weight": reader.weight}
    if reader.position is not None:
        tensors["position"] = reader.position
    write_sealed(path, tensors, {KEY_ID: key_id})


def open_reader(path: Path) -> PatchReader:
    """Reads a patch reader (patch and position embeddings) from a file of `write_reader`.

    Raises:
        UserError: When the file is missing or damaged, or does not contain a patch reader.
    """
    tensors, _ = read_sealed(path)
    if "weight" not in tensors:
        raise UserError(f"{path} is not a patch reader: expected a tensor named 'weight'")
    return PatchReader(weight=tensors["weight"], position=tensors.get("position"))


def adapted_to(path: Path) -> str:
    """Returns the id of the key to which a stored patch reader is adapted.

    The result is empty if the patch reader is not adapted, or if the file does not exist.

    Raises:
        UserError: When the file is damaged.
    """
    return read_sealed(path)[1].get(KEY_ID, "") if path.exists() else ""


def _as_matrix(weight: Tensor) -> Tensor:
    """Flattens a weight (W, C, p, p) to (W, D). A weight of another shape is returned unchanged."""
    return weight.flatten(1) if weight.ndim == 4 else weight


def _widened(convolution: Any, weight: Tensor) -> KernelPerPatch:
    """Creates a module with a kernel for every patch, which replaces a convolution."""
    bias = None if convolution.bias is None else convolution.bias.detach().clone()
    wide = KernelPerPatch(weight.contiguous().clone(), bias, convolution.kernel_size)
    wide.to(convolution.weight.device)
    for name, parameter in wide.named_parameters():
        parameter.requires_grad_(getattr(convolution, name).requires_grad)
    return wide


def _patch_positions(model: Any) -> torch.Tensor:
    """Returns the position embeddings of the patches (N, W), sharing memory with the model."""
    patches = model.patch_embed.num_patches
    positions: torch.Tensor = model.pos_embed[0, -patches:]
    return positions


def _adds_positions(model: Any) -> bool:
    """Returns True if a model has a position embedding and no other position information."""
    if getattr(model, "pos_embed", None) is None or getattr(model, "rope", None) is not None:
        return False
    attention = getattr(next(iter(getattr(model, "blocks", [])), None), "attn", None)
    relative = ("rel_pos", "relative_position_bias_table")
    return not any(getattr(attention, name, None) is not None for name in relative)
