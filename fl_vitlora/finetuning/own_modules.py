"""Base classes for parts that add their own small modules to a ViT and train only these modules.

Examples of these modules are adapters, prompts, and scales with shifts. Each module has an
attribute with its part, so that the modules of two parts of one Python class can be distinguished.
Several clients can be trained in one batch with these modules. In such a batch every trained tensor
has a first dimension K, and `OwnModule` applies to each image the tensors of the image's client.

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
            trained in one batch, the module `training.stacking` replaces `multiply` by a function
            that applies the own matrix of each client.
    """

    def __init__(self, owner: Part) -> None:
        super().__init__()
        self.owner = owner
        self.multiply: Multiply = F.linear

    def for_each_image(self, vector: Tensor, images: int) -> Tensor:
        """Returns a trained vector in a shape that broadcasts with the tokens, (B, T, n).

        Args:
            vector: The vector, (n,), or (K, n) if K clients share the batch.
            images: The number B of images in the batch.

        Returns:
            The vector itself, (n,), or the vector of each image's client, (B, 1, n).
        """
        if vector.ndim == 1:
            return vector
        return self.multiply(vector.new_ones(images, 1, 1), vector.unsqueeze(-1))

    def affine(self, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        """Returns matrix·x + shift, (B, T, m), for the inputs x, (B, T, n)."""
        return self.multiply(x, matrix) + self.for_each_image(shift, x.shape[0])


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
        """Returns the group `lora`, whose learning rate is the setting `learning_rate` itself."""
        del name
        return LORA


def parts_of_block(block: nn.Module, *paths: str) -> list[Any]:
    """Returns modules of a block by their dotted names.

    Raises:
        UserError: If the block has no module with one of the names.
    """
    found = []
    for path in paths:
        try:
            found.append(block.get_submodule(path))
        except AttributeError:
            raise UserError(
                f"the method needs a module {path!r}, which {type(block).__name__} lacks; use a "
                "plain ViT, or --method full"
            ) from None
    return found


def pretrained(layer: nn.Module) -> Any:
    """Returns the pre-trained layer inside a layer that parts of a method have replaced."""
    inner: Any = layer
    while hasattr(inner, "base"):
        inner = inner.base
    return inner


def plain(layer: Any) -> Any:
    """Returns the merged layer if a method has replaced the layer, otherwise the layer itself."""
    return layer.merged() if hasattr(layer, "merged") else layer


def put_plain(root: nn.Module, path: str) -> Any:
    """Replaces the layer at a dotted path by its merged layer, and returns the merged layer."""
    layer = plain(root.get_submodule(path))
    targets.put_module(root, path, layer)
    return layer


def check_bias(layer: nn.Module, path: str) -> None:
    """Refuses a layer without bias, because a trained shift could not be merged into the layer.

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
