"""Takes the patch-reading part out of a timm ViT and puts another one in.

N patches, D = C·p² entries a patch, W width of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from fl_vitlora.encryption.reader import Reader
from fl_vitlora.files import write_atomically
from fl_vitlora.models.backbone import Backbone

READER_FILE = "reader.safetensors"


def reader_of(backbone: Backbone) -> Reader:
    """Copies the reader out of a model.

    Args:
        backbone: Any timm ViT with a patch embedding.

    Returns:
        The reader; its position is none where positions are not, or not only, added to tokens.
    """
    model: Any = backbone.model
    convolution = model.patch_embed.proj
    weight = convolution.weight.detach().flatten(1).clone()
    bias = torch.zeros(len(weight)) if convolution.bias is None else convolution.bias
    normalization = backbone.normalization
    return Reader(
        weight=weight,
        bias=bias.detach().clone(),
        position=_patch_positions(model).detach().clone() if _adds_positions(model) else None,
        inverse=(1 - 2 * normalization.mean) / normalization.std,
    )


@torch.no_grad()
def put_reader(model: nn.Module, reader: Reader) -> None:
    """Puts a reader into a model, in place."""
    whole: Any = model
    convolution = whole.patch_embed.proj
    convolution.weight.copy_(reader.weight.view_as(convolution.weight))
    if convolution.bias is not None:
        convolution.bias.copy_(reader.bias)
    elif reader.bias.any():
        convolution.bias = nn.Parameter(reader.bias.clone(), requires_grad=False)
    if reader.position is not None:
        _patch_positions(whole).copy_(reader.position)


def write_reader(path: Path, reader: Reader) -> None:
    """Stores a reader; it betrays the key to who knows the model it was adapted from."""
    tensors = {"weight": reader.weight.contiguous(), "bias": reader.bias.contiguous()}
    if reader.position is not None:
        tensors["position"] = reader.position.contiguous()
    write_atomically(path, save(tensors))


def open_reader(path: Path) -> Reader:
    """Reads what `write_reader` stored."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Reader(weight=tensors["weight"], bias=tensors["bias"], position=tensors.get("position"))


def _patch_positions(model: Any) -> torch.Tensor:
    """Returns the view of the position embedding that belongs to patches (N, W)."""
    patches = model.patch_embed.num_patches
    positions: torch.Tensor = model.pos_embed[0, -patches:]
    return positions


def _adds_positions(model: Any) -> bool:
    """Tells whether a position embedding added to tokens is all that the model knows of places."""
    if getattr(model, "pos_embed", None) is None or getattr(model, "rope", None) is not None:
        return False
    attention = getattr(next(iter(getattr(model, "blocks", [])), None), "attn", None)
    relative = ("rel_pos", "relative_position_bias_table")
    return not any(getattr(attention, name, None) is not None for name in relative)
