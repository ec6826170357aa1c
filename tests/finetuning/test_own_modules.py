"""Modules that parts add: they add up with other parts, and they do not depend on keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.houlsby import Houlsby
from fl_vitlora.finetuning.own_modules import OwnModule, pretrained
from fl_vitlora.state import l2_norm, subtract
from fl_vitlora.testing.method import check_method
from fl_vitlora.training.stacking import BatchSizes, linear
from tests.conftest import random_vit
from tests.finetuning.moved_model import moved
from tests.in_process import federate, settings

SUMS = [
    "lora+ssf",
    "patch_embed+ssf",
    "repadapter+ssf+bias",
    "repadapter+lora",
    "adaptformer+patch_embed",
    "houlsby+adaptformer+norm",
    "vpt+bias",
    "vpt_deep+lora+ssf",
]
OTHERS = ["ssf", "adaptformer", "houlsby", "repadapter", "vpt", "vpt_deep", "fact"]


@pytest.mark.parametrize("method", SUMS)
def test_parts_that_touch_the_same_layers_add_up(method: str):
    check_method(method)


def test_a_sum_that_does_not_work_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"two parts .* 'attn\.qkv'.*write ssf last in the sum"):
        moved("ssf+lora")
    with pytest.raises(UserError, match=r"two parts .* 'attn\.qkv'.*different layers"):
        moved("lora+rslora")


def test_the_order_of_a_sum_does_not_change_what_is_sent():
    one, other = (set(methods.trainable(moved(m))) for m in ("ssf+patch_embed", "patch_embed+ssf"))
    assert one == other
    assert "lora:patch_embed.norm.scale" in one
    assert "patch_embed.proj.weight" in one


def test_biases_of_the_model_and_shifts_of_a_part_are_different_tensors():
    names = set(methods.trainable(moved("bias+adaptformer")))
    assert names == set(methods.trainable(moved("bias"))) | set(
        methods.trainable(moved("adaptformer"))
    )


def test_each_image_gets_the_vector_of_its_client():
    module, batch = OwnModule(Houlsby()), BatchSizes()
    batch.sizes = (2, 1)
    module.multiply = lambda x, weight: linear(x, weight, None, batch)
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out = module.for_each_image(vectors, 3)
    assert out.tolist() == [[[1.0, 2.0]], [[1.0, 2.0]], [[3.0, 4.0]]]
    assert module.for_each_image(vectors[0], 3) is not None
    assert torch.equal(module.for_each_image(vectors[0], 3), vectors[0])


def test_the_pretrained_layer_is_found_inside_all_adapters():
    layer = moved("lora+ssf").blocks[0].attn.qkv
    assert type(pretrained(layer)) is torch.nn.Linear
    assert pretrained(layer) is layer.base.base


def test_a_model_without_the_modules_of_a_block_is_refused():
    model = random_vit().model
    del model.blocks[0].mlp  # type: ignore[index,union-attr]
    with pytest.raises(UserError, match="the method needs a module 'mlp', which Block lacks"):
        methods.prepare(model, FineTuningConfig(method="houlsby"), 0)


@pytest.mark.parametrize("method", OTHERS)
def test_with_a_key_for_each_client_a_run_is_the_plain_run(method: str):
    """The readers of all clients are adapted to their keys, and everything is in float64."""
    chosen: dict[str, Any] = {
        "finetuning__method": f"{method}+patch_embed",
        "training__optimizer": "sgd",
        "training__learning_rate": 0.02,
    }
    keys = {
        "encryption__scope": "client",
        "encryption__adapt": True,
        "finetuning__patch_embedding": "aligned",
    }
    plain = federate(settings(0, encryption__steps=[], **chosen), torch.float64)
    keyed = federate(settings(0, **keys, **chosen), torch.float64)
    way = l2_norm(subtract(plain.model, plain.initial))
    assert way > 0.01
    assert l2_norm(subtract(keyed.model, plain.model)) < 1e-11 * way
    assert keyed.accuracy == plain.accuracy
