"""SSF scales and shifts the outputs of every operation, and averages exactly."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from tests.conftest import random_vit
from tests.finetuning.moved_model import BASE, merged_weights, moved, numbers_in_a_block_of_vit_b


def test_vit_b_trains_as_many_numbers_as_the_paper_says():
    """0.205 million in twelve blocks, the patch embedding and the last normalisation."""
    outside = 2 * 768 + 2 * 768
    in_a_block = numbers_in_a_block_of_vit_b("ssf") - outside
    assert in_a_block == 22 * 768
    assert 12 * in_a_block + outside == 205_824


def test_at_the_start_no_bit_changes():
    plain, model = random_vit().model.eval(), random_vit().model.eval()
    methods.prepare(model, FineTuningConfig(method="ssf"), 0)
    images = torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16)
    assert torch.equal(model(images), plain(images))


def test_every_operation_is_scaled_and_shifted():
    model, before = moved("ssf"), random_vit().model.double().state_dict()
    paths = {
        path.removesuffix(".base"): module
        for path, module in model.named_modules()
        if hasattr(module, "shift")
    }
    scales = {path: module.scale.detach().clone() for path, module in paths.items()}
    shifts = {path: module.shift.detach().clone() for path, module in paths.items()}
    after = merged_weights(model)
    layers = {name.rpartition(".")[0] for name in before if name.endswith(".bias")} - {"head"}
    assert {path.replace("patch_embed.norm", "patch_embed.proj") for path in paths} == layers
    for path, scale in scales.items():
        layer = path.replace("patch_embed.norm", "patch_embed.proj")
        weight, bias = before[f"{layer}.weight"], before[f"{layer}.bias"]
        expected = torch.einsum("m,m...->m...", scale, weight)
        assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-14, rtol=0)
        shifted = scale * bias + shifts[path]
        assert torch.allclose(after[f"{layer}.bias"], shifted, atol=1e-14, rtol=0)


def test_the_average_of_two_clients_has_the_average_of_their_weights():
    one, other, mean = (moved("ssf", seed=seed) for seed in (1, 2, 3))
    exported = [methods.export_state(model) for model in (one, other)]
    average = {name: (0.3 * t + 0.7 * exported[1][name]) for name, t in exported[0].items()}
    methods.load_state(mean, average)
    weights = [merged_weights(model) for model in (one, other)]
    for name, tensor in merged_weights(mean).items():
        expected = 0.3 * weights[0][name] + 0.7 * weights[1][name]
        assert torch.allclose(tensor, expected, atol=1e-14, rtol=0)


def test_it_scales_the_outputs_of_adapted_layers():
    model = moved("lora+ssf")
    layer = model.blocks[0].attn.qkv
    x = torch.ones(1, 1, 96, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base(x) * layer.scale + layer.shift)
    weight = layer.base.merged_weight()
    expected = layer.scale.detach().unsqueeze(-1) * weight
    after = merged_weights(model)["blocks.0.attn.qkv.weight"]
    assert torch.allclose(after, expected, atol=1e-14, rtol=0)


def test_normalised_patches_and_pooled_tokens_are_scaled_too():
    arguments = {**BASE, "num_classes": 3, "global_pool": "avg", "pre_norm": True}

    def make() -> Any:
        torch.manual_seed(0)
        model: Any = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
        return model

    model = make()
    model.patch_embed.norm = nn.LayerNorm(192)
    model.patch_embed.proj.bias = nn.Parameter(torch.zeros(192))
    methods.prepare(model, FineTuningConfig(method="ssf"), 0)
    assert "lora:fc_norm.scale" in methods.trainable(model)
    for parameter in methods.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model.double()(images)
    methods.merge(model)
    assert torch.allclose(model(images), expected, atol=1e-11, rtol=0)


def test_a_layer_without_bias_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", qkv_bias=False, **BASE)
    with pytest.raises(UserError, match=r"attn\.qkv has no bias"):
        methods.prepare(model, FineTuningConfig(method="ssf"), 0)
