"""A small ViT whose trained tensors have moved away from their start, in float64."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.rng import generator
from fl_vitlora.state import State, count
from fl_vitlora.testing.method_subject import Subject
from tests.conftest import random_vit

BASE: dict[str, Any] = {"img_size": 32, "depth": 1, "num_classes": 0}


def moved(method: str, seed: int = 0, **finetuning: Any) -> Any:
    """Builds the bundled architecture, attaches a method, and moves its trained tensors.

    The pre-trained tensors and the method's frozen tensors are the same for every seed.
    """
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method=method, **finetuning), 0)
    for name, parameter in methods.trainable(model).items():
        draw = generator(seed, "moved", name)
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model.double().eval()


def tokens(seed: int = 0, count: int = 5, width: int = 96) -> Tensor:
    """Draws tokens for two images, (2, count, width), in float64."""
    draw = generator(seed, "tokens")
    return torch.randn(2, count, width, generator=draw, dtype=torch.float64)


def merged_weights(model: Any) -> State:
    """Merges the method of a model and returns all tensors of the plain model."""
    methods.merge(model)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def numbers_in_a_block_of_vit_b(method: str, **finetuning: Any) -> int:
    """Counts the numbers that a method trains in a ViT-B of one block, without a head."""
    model = timm.create_model("vit_base_patch16_224", **{**BASE, "num_classes": 1})
    model.requires_grad_(requires_grad=False)
    methods.prepare(model, FineTuningConfig(method=method, **finetuning), 0)
    return count(methods.trainable(model)) - 769


def subject_of(part: Part) -> Subject:
    """Returns a method of one part as the subject of a check."""
    name = type(part).__name__
    return Subject(method=Method(name=name, parts=((name, part),)))
