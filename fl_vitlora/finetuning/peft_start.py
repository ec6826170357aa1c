"""Checks that a tuner of peft does not change the outputs of the model before training.

Before training, a model with a fine-tuning method must have the same outputs as the pre-trained
model. A tuner is refused if it changes the pre-trained weights, or if the outputs of its layers
differ from the outputs of the plain layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError

CLOSE = 1e-4  # largest change of a layer's outputs at the start, as a share of the largest output


@dataclass(frozen=True, kw_only=True)
class PlainLayer:
    """A plain layer before a tuner replaces the layer, with copies of its weights.

    Attributes:
        layer: The plain layer.
        weights: Copies of the weights of the layer.
        probe: Fixed inputs of the layer.
        outputs: The outputs of the plain layer for these inputs.
    """

    layer: nn.Module
    weights: Mapping[str, Tensor]
    probe: Tensor
    outputs: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Any) -> PlainLayer:
        """Returns the description of a linear layer or a layer normalisation."""
        weight: Tensor = layer.weight
        width = weight.shape[-1]
        probe = torch.linspace(0, 40, 4 * width).sin().reshape(4, width).to(weight)
        weights = {name: p.detach().clone() for name, p in layer.named_parameters()}
        return cls(layer=layer, weights=weights, probe=probe, outputs=layer(probe))

    def changed(self) -> bool:
        """Returns True if the weights of the layer differ from the copies."""
        now = dict(self.layer.named_parameters())
        return any(not torch.equal(now[name], old) for name, old in self.weights.items())

    @torch.no_grad()
    def distance(self, layer: nn.Module) -> float:
        """Returns the largest change of an output, as a share of the plain layer's largest output.

        Args:
            layer: The layer that has replaced the plain layer.
        """
        change = (layer.eval()(self.probe) - self.outputs).abs().max()
        return float(change / self.outputs.abs().max())


def check(
    tuner: str, before: Mapping[str, PlainLayer], model: nn.Module, options: Mapping[str, Any]
) -> None:
    """Checks that the layers of a tuner have the weights and outputs of the plain layers.

    Args:
        tuner: The name of the tuner in peft.
        before: A mapping from paths in the model to the plain layers.
        model: The model, in which the tuner has replaced these layers.
        options: The hyper-parameters of the tuner. If a hyper-parameter changes the outputs before
            training, the error message names it.

    Raises:
        UserError: If the weights or the outputs of a layer differ.
    """
    flags = [name for name, v in options.items() if name.startswith("init_") and v is False]
    advice = f"; try --set finetuning.parameters.{flags[0]}=true" if flags else ""
    for path, plain in before.items():
        if plain.changed():
            raise UserError(
                f"method peft:{tuner} changes the pre-trained weights of {path} at the start"
                f"{advice}"
            )
        far = plain.distance(model.get_submodule(path))
        if not far <= CLOSE:
            raise UserError(
                f"method peft:{tuner} does not start at the pre-trained function: the outputs "
                f"of {path} change by {100 * far:.2g} %{advice}"
            )
