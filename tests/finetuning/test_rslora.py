"""rsLoRA has the factor α/√r, which keeps the size of a step when the rank grows."""

from __future__ import annotations

import pytest
import torch

from fl_vitlora.finetuning import methods, targets
from fl_vitlora.testing.method_subject import images
from tests.finetuning.moved_model import merged_weights, moved, tokens


@pytest.mark.parametrize(("rank", "factor"), [(1, 6.0), (4, 3.0), (9, 2.0)])
def test_the_product_is_multiplied_by_alpha_over_the_root_of_the_rank(rank: int, factor: float):
    model = moved("rslora", rank=rank, alpha=6.0)
    layer = model.blocks[0].attn.qkv
    pair = layer.adapters["q"]
    expected = layer.base.weight[:96] + factor * pair.lora_B @ pair.lora_A
    expected = expected.detach().clone()
    weight = merged_weights(model)["blocks.0.attn.qkv.weight"][:96]
    assert torch.allclose(weight, expected, atol=1e-14, rtol=0)


def test_with_rank_one_it_is_lora():
    batch = images().double()
    for rank in (1, 2):
        model, lora = moved("rslora", rank=rank), moved("lora", rank=rank)
        methods.load_state(model, methods.export_state(lora))
        assert torch.equal(model(batch), lora(batch)) == (rank == 1)


def test_products_that_a_strategy_moves_into_the_weights_have_the_same_factor():
    model, batch = moved("rslora"), images().double()
    expected = model(batch)
    products = {
        path: pair.product().detach()
        for path, pair in model.named_modules()
        if hasattr(pair, "product")
    }
    for path in products:
        model.get_parameter(f"{path}.lora_B").data.zero_()
    assert not torch.allclose(model(batch), expected, atol=1e-3)
    targets.put_increments(model, products)
    assert torch.allclose(model(batch), expected, atol=1e-12, rtol=0)


def change_of_a_step(method: str, rank: int) -> float:
    """Measures how far one step of B, from zero, moves the outputs of a layer."""
    model = moved(method, rank=rank)
    layer = model.blocks[0].attn.qkv
    for name in layer.adapters:
        layer.adapters[name].lora_B.data.zero_()
        torch.nn.init.normal_(
            layer.adapters[name].lora_A, generator=torch.Generator().manual_seed(0)
        )
    before = layer(tokens())
    before.square().sum().backward()
    for name in layer.adapters:
        matrix = layer.adapters[name].lora_B
        matrix.data -= 1e-3 * matrix.grad
    return float((layer(tokens()) - before).detach().norm())


def test_a_step_does_not_shrink_with_the_rank():
    assert 0.5 < change_of_a_step("rslora", 64) / change_of_a_step("rslora", 4) < 2
    assert change_of_a_step("lora", 64) / change_of_a_step("lora", 4) < 2 * 4 / 64


def test_strategies_treat_it_as_lora():
    names = methods.trainable(moved("rslora"))
    assert names.keys() == methods.trainable(moved("lora")).keys()
