"""The fine-tuning method that is tested, and the small models on which it is tested."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.method import Method
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.rng import generator
from fl_vitlora.state import State

CLASSES, CLIENTS = 3, (2, 1)
CLOSE, CLOSE_DOUBLE = 1e-4, 1e-9  # tolerances for outputs of about 1, in float32 and in float64


class MethodError(AssertionError):
    """An error: a fine-tuning method breaks a rule.

    The message explains how the method breaks the rule.
    """


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A fine-tuning method that is tested, with functions that build models for it.

    Attributes:
        method: The fine-tuning method that is tested.
    """

    method: Method

    def plain(self) -> Backbone:
        """Builds the model without the method.

        The head of the returned model has random weights, not zeros.
        """
        built = backbone.build(ModelConfig(weights="random"), CLASSES, 0)
        head = built.model.get_parameter("head.weight")
        head.data.normal_(std=0.1, generator=generator(0, "check", "head"))
        return built

    def prepared(self) -> Backbone:
        """Builds the model with the method."""
        built = self.plain()
        methods.attach(built.model, self.method, 0)
        return built

    def moved(self, seed: int = 0) -> Backbone:
        """Builds the model with the method, and adds noise to every tensor that clients train."""
        built = self.prepared()
        for name, parameter in trained(built.model, self.method).items():
            draw = generator(seed, "check", name)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        return built


def trained(model: nn.Module, method: Method) -> dict[str, nn.Parameter]:
    """Returns the tensors that clients train, by name.

    The result has all exchanged tensors except the tensors that only the server changes (`control`)
    and the tensors that clients only measure (`measured`).

    Args:
        model: A model to which the method is attached.
        method: The fine-tuning method.
    """
    others = method.control + method.measured
    return {n: p for n, p in methods.trainable(model).items() if not n.endswith(others)}


def images(count: int = 2) -> Tensor:
    """Returns made-up images (count, 3, 16, 16) with pixels in [-1, 1]."""
    return torch.linspace(0, 40, count * 3 * 256).reshape(count, 3, 16, 16).sin()


def outputs(model: nn.Module, batch: Tensor | None = None) -> Tensor:
    """Returns the logits of a model, in evaluation mode and without gradients."""
    with torch.no_grad():
        logits: Tensor = model.eval()(images() if batch is None else batch)
    return logits


def shared(subject: Subject) -> State:
    """Returns the tensors that a client sends after training; personal tensors are left out."""
    state = methods.export_state(subject.moved().model)
    return {n: t for n, t in state.items() if not n.endswith(subject.method.personal)}


def distance(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference between two tensors; infinity if their shapes differ."""
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
