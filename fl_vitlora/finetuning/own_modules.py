"""The base of parts that add small modules of their own to a ViT and train nothing else.

Examples of such modules are adapters, prompts, and scales and shifts. Each module knows the part
that owns it, so that two parts of one kind can be told apart. The modules of this base can train
several clients in one batch: then every trained tensor has a first dimension K, and `OwnModule`
applies to each image the tensors of the client that the image belongs to.

Letters in shapes: K clients that share a batch, B images in a batch, T tokens, n inputs, m outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.lora import Multiply
from fl_vitlora.finetuning.part import Part


class OwnModule(nn.Module):
    """A module that a part adds; its parameters are the trained tensors.

    Args:
        owner: The part that adds the module.

    Attributes:
        multiply: A function that applies a matrix to a tensor (B, T, n). When several clients are
            trained in one batch, `multiply` is replaced by a function that applies each client's
            own matrix (`training.stacking`).
    """

    def __init__(self, owner: Part) -> None:
        super().__init__()
        self.owner = owner
        self.multiply: Multiply = F.linear

    def for_each_image(self, vector: Tensor, images: int) -> Tensor:
        """Returns a trained vector in a shape that fits the tokens of a batch, (B, T, n).

        Args:
            vector: The vector, (n,), or (K, n) if K clients share the batch.
            images: The number B of images in the batch.

        Returns:
            The vector itself, or the vector of each image's client, (B, 1, n).
        """
        if vector.ndim == 1:
            return vector
        return self.multiply(vector.new_ones(images, 1, 1), vector.unsqueeze(-1))

    def affine(self, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        """Returns matrix·x + shift, (B, T, m), for the inputs x, (B, T, n)."""
        return self.multiply(x, matrix) + self.for_each_image(shift, len(x))


@dataclass(frozen=True, kw_only=True)
class ModulePart(Part):
    """A part of a fine-tuning method that trains exactly the parameters of the modules it added."""

    stackable = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the parameters of the modules that this part added."""
        own = {id(p) for module in self.modules(model) for p in module.parameters(recurse=False)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in own]

    def modules(self, model: nn.Module) -> list[OwnModule]:
        """Returns the modules that this part added to a model, in the model's order."""
        every = model.modules()
        return [m for m in every if isinstance(m, OwnModule) and m.owner == self]

    def group(self, name: str) -> str:
        """Returns the group `lora`, whose tensors have the setting `learning_rate` unchanged."""
        del name
        return LORA


def parts_of_block(block: nn.Module, *paths: str) -> list[Any]:
    """Returns modules of a block by their dotted names.

    Raises:
        UserError: If the block lacks one of these modules.
    """
    found = []
    for path in paths:
        try:
            found.append(block.get_submodule(path))
        except AttributeError:
            raise UserError(
                f"the method finds no {path!r} in {type(block).__name__}; use a plain ViT, or "
                "--method full"
            ) from None
    return found


def pretrained(layer: nn.Module) -> Any:
    """Returns the pre-trained layer inside a layer that parts of a method have replaced."""
    inner: Any = layer
    while hasattr(inner, "base"):
        inner = inner.base
    return inner


def plain(layer: Any) -> Any:
    """Returns a layer without adapters; if a method has replaced the layer, the merged layer."""
    return layer.merged() if hasattr(layer, "merged") else layer


def put_plain(root: nn.Module, path: str) -> Any:
    """Replaces the layer at a dotted path by its merged layer, in place, and returns that layer."""
    layer = plain(root.get_submodule(path))
    targets.put_module(root, path, layer)
    return layer


def check_bias(layer: nn.Module, path: str) -> None:
    """Refuses a layer without bias, because a trained shift could not be merged into it.

    Args:
        layer: The layer, with or without adapters.
        path: The name of the layer, for the message.

    Raises:
        UserError: If the layer has no bias.
    """
    if getattr(pretrained(layer), "bias", None) is None:
        raise UserError(
            f"the method merges shifts into biases, but {path} has no bias; use a ViT whose layers "
            "have biases, or another --method"
        )
