"""RepAdapter is linear, so it disappears into the layers that read its outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.testing.method_subject import images
from tests.conftest import random_vit
from tests.finetuning.moved_model import (
    BASE,
    merged_weights,
    moved,
    numbers_in_a_block_of_vit_b,
    tokens,
)

PARAMETERS = {"scale": 0.5, "adapter_groups": 4}


@pytest.mark.parametrize(
    ("place", "name"), [("attn", "repadapter_attn"), ("mlp", "repadapter_mlp")]
)
def test_each_module_reads_adapted_tokens(place: str, name: str):
    block, x = moved("repadapter", parameters=PARAMETERS).blocks[1], tokens()
    own = getattr(block, name)
    up = torch.block_diag(*own.up.chunk(4))
    adapted = x + 0.5 * F.linear(F.linear(x, own.down, own.down_shift), up, own.up_shift)
    whole: Any = random_vit().model.double().eval()
    plain = getattr(whole.blocks[1], place)
    assert torch.allclose(getattr(block, place)(x), plain(adapted), atol=1e-13, rtol=0)


def test_the_merged_weight_is_w_times_one_plus_the_bottleneck():
    model, before = moved("repadapter"), random_vit().model.double().state_dict()
    matrix, shift = (t.detach().clone() for t in model.blocks[3].repadapter_mlp.matrix())
    after = merged_weights(model)
    weight = before["blocks.3.mlp.fc1.weight"]
    expected = weight @ (torch.eye(96) + matrix)
    bias = before["blocks.3.mlp.fc1.bias"] + weight @ shift
    assert torch.allclose(after["blocks.3.mlp.fc1.weight"], expected, atol=1e-13, rtol=0)
    assert torch.allclose(after["blocks.3.mlp.fc1.bias"], bias, atol=1e-13, rtol=0)
    assert torch.equal(after["blocks.3.mlp.fc2.weight"], before["blocks.3.mlp.fc2.weight"])


@pytest.mark.parametrize("method", ["repadapter", "lora+repadapter", "repadapter+lora+ssf"])
def test_a_copy_of_a_model_can_be_merged_and_its_hooks_are_gone(method: str):
    model = moved(method)
    other, batch = copy.deepcopy(model), images().double()
    expected = model(batch)
    methods.merge(other)
    assert torch.allclose(other(batch), expected, atol=1e-11, rtol=0)
    assert not any(module._forward_pre_hooks for module in other.modules())
    assert torch.equal(model(batch), expected)


def test_two_groups_halve_the_widening_matrix():
    numbers = 2 * (768 * 8 + 768 * 4 + 8 + 768)
    assert numbers_in_a_block_of_vit_b("repadapter") == numbers


def test_a_layer_without_bias_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", qkv_bias=False, **BASE)
    with pytest.raises(UserError, match=r"attn\.qkv has no bias"):
        methods.prepare(model, FineTuningConfig(method="repadapter"), 0)
