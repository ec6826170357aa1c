"""Computes the gradient that images would have in the model that the server sent to a client.

The server knows all weights with which a client begins. So it can compute the gradient of the local
loss for any images and labels, and compare this gradient with a received update.

Letters in shapes: B images, C channels, H × W pixels, L classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from fl_vitlora.finetuning import methods

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Simulated:
    """The model of a round, as a function from images to gradients.

    Attributes:
        model: The model; its attention is computed by differentiable steps.
        weights: The trained tensors, by their names in the model.
        names: A mapping from the name of each tensor in the model to its name in messages.
        smoothing: The label smoothing of the local loss.
    """

    model: nn.Module = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    names: Mapping[str, str]
    smoothing: float = 0.0

    def gradient(self, images: Tensor, classes: Tensor) -> Gradient:
        """Returns the gradient of the mean cross-entropy.

        Args:
            images: The images as the model reads them, in [-1, 1], (B, C, H, W).
            classes: The labels, int64 (B,).

        Returns:
            The gradient of each trained tensor, by its name in messages.
        """

        def loss(weights: Mapping[str, Tensor]) -> Tensor:
            logits = functional_call(self.model, dict(weights), (images,))
            return F.cross_entropy(logits, classes, label_smoothing=self.smoothing)

        found = grad(loss)(dict(self.weights))
        return {self.names[name]: gradient for name, gradient in found.items()}


def simulated(
    model: nn.Module,
    state: Mapping[str, Tensor],
    smoothing: float,
    dtype: torch.dtype = torch.float32,
) -> Simulated:
    """Makes a copy of a model that computes gradients with the tensors of a round.

    Args:
        model: The prepared model of the server, which is not changed.
        state: The exchanged tensors with which the round began, by their names in messages. Tensors
            of the model that are missing in `state` keep the values that the model has.
        smoothing: The label smoothing of the local loss.
        dtype: The number format of all tensors.
    """
    own = copy.deepcopy(model).to(dtype).eval()
    for module in own.modules():
        if hasattr(module, "fused_attn"):  # its fused kernel has no derivative of second order
            vars(module)["fused_attn"] = False
    parameters = {id(p): name for name, p in own.named_parameters()}
    trained = methods.backpropagated(own)
    weights, names = {}, {}
    for name, parameter in trained.items():
        path = parameters[id(parameter)]
        weights[path] = state.get(name, parameter.detach()).to(dtype).reshape(parameter.shape)
        names[path] = name
    own.requires_grad_(requires_grad=False)
    return Simulated(model=own, weights=weights, names=names, smoothing=smoothing)
