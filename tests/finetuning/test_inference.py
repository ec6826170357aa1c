"""What is computed quicker is the same to rounding, and afterwards the model is what it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.inference import quick_layers
from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.finetuning.products import quicken
from fl_vitlora.models.backbone import normalize
from tests.conftest import MakeBackbone, random_vit

TARGETS = [["q", "v"], ["k"], ["q", "k", "v", "proj", "fc1", "fc2"]]


def moved(model: nn.Module) -> nn.Module:
    """Gives all trained tensors values as large as those of the frozen ones."""
    torch.manual_seed(0)
    for parameter in methods.trainable(model).values():
        parameter.data.normal_(std=0.1)
    return model.eval()


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, *, quick: bool) -> Tensor:
    with quick_layers(model) if quick else nullcontext():
        logits: Tensor = model(normalize(images))
    return logits


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_a_model_computes_the_same(
    method: str, targets: list[str], make_backbone: MakeBackbone, images: Tensor
):
    model = moved(make_backbone(method=method, targets=targets).model)
    expected = outputs(model, images, quick=False)
    assert torch.allclose(outputs(model, images, quick=True), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(model, images, quick=False), expected)


def test_sandwiches_and_increments_are_merged_too(images: Tensor):
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(), 0, "lora_xs")
    moved(model)
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.put_increments({"v": torch.randn(96, 96) / 10})
    expected = outputs(model, images, quick=False)
    assert torch.allclose(outputs(model, images, quick=True), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_afterwards_what_it_was_bit_by_bit(make_backbone: MakeBackbone):
    model = moved(make_backbone().model)
    tensors = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(KeyboardInterrupt), torch.inference_mode(), quick_layers(model):
        assert {n: t.data_ptr() for n, t in model.state_dict().items()} == {
            name: place for name, (place, _) in tensors.items()
        }
        raise KeyboardInterrupt
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == tensors[name][0]
        assert torch.equal(tensor, tensors[name][1])


def test_layers_that_compute_otherwise_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer, x = Doubled(3, 4), torch.randn(2, 3)
    expected = layer(x)
    with torch.inference_mode(), quick_layers(nn.Sequential(layer)):
        assert torch.equal(layer(x), expected)


def test_layers_that_were_quickened_for_training_stay_so(make_backbone: MakeBackbone):
    model: Any = make_backbone().model
    quicken(model)
    before = [vars(module).get("forward") for module in model.modules()]
    with torch.inference_mode(), quick_layers(model):
        assert [vars(module).get("forward") for module in model.modules()] != before
    assert [vars(module).get("forward") for module in model.modules()] == before
    blocks = [vars(layer).get("forward") for layer in model.blocks.modules()]
    assert sum(forward is not None for forward in blocks) == 6 * 4  # a block has four products
