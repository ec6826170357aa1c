"""Prompts are tokens that the blocks read: before the first block, or new ones before each."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.testing.method_subject import images
from tests.conftest import random_vit
from tests.finetuning.moved_model import BASE, moved, numbers_in_a_block_of_vit_b

SIX = {"prompts": 6}


def prompts_of(model: Any) -> list[Tensor]:
    """Returns the prompts of all blocks that have any."""
    return [block.prompts.tokens for block in model.blocks if hasattr(block, "prompts")]


def by_hand(prompts: list[Tensor]) -> Tensor:
    """Computes the logits of the plain model with prompts at the end of the tokens."""
    plain: Any = random_vit().model.double().eval()
    x = plain._pos_embed(plain.patch_embed(images().double()))
    length, count = x.shape[1], len(prompts[0])
    x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    for number, block in enumerate(plain.blocks):
        if 0 < number < len(prompts):
            x = torch.cat([x[:, :length], prompts[number].expand(len(x), count, -1)], dim=1)
        x = block(x)
    logits: Tensor = plain.head(plain.norm(x)[:, 0])
    return logits


@pytest.mark.parametrize(("method", "blocks"), [("vpt", 1), ("vpt_deep", 6)])
def test_the_blocks_read_the_prompts_as_tokens_without_position(method: str, blocks: int):
    model = moved(method, parameters=SIX)
    model.head = random_vit().model.double().head
    prompts = prompts_of(model)
    assert [tuple(p.shape) for p in prompts] == [(6, 96)] * blocks
    assert torch.allclose(model(images().double()), by_hand(prompts), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("method", "blocks"), [("vpt", 1), ("vpt_deep", 6)])
def test_only_the_prompts_are_trained(method: str, blocks: int):
    model = moved(method)
    names = [f"lora:blocks.{number}.prompts.tokens" for number in range(blocks)]
    assert list(methods.trainable(model)) == [*names, "head.weight", "head.bias"]
    assert numbers_in_a_block_of_vit_b(method) == 10 * 768


def test_the_order_of_prompts_does_not_matter():
    model = moved("vpt")
    before = model(images().double())
    model.blocks[0].prompts.tokens.data = model.blocks[0].prompts.tokens.data.flip(0)
    assert torch.allclose(model(images().double()), before, atol=1e-12, rtol=0)


def test_prompts_start_within_the_bound_of_the_paper():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="vpt", parameters={"prompts": 200}), 0)
    largest = float(prompts_of(model)[0].detach().abs().max())
    bound = (6 / (3 * 4 * 4 + 96)) ** 0.5
    assert 0.99 * bound < largest <= bound


def test_no_frozen_tensor_has_another_name():
    model = moved("vpt_deep")
    own = {name for name, _ in model.named_parameters() if not name.endswith("prompts.tokens")}
    assert own == {name for name, _ in random_vit().model.named_parameters()}


def small_vit(**arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**BASE, **arguments})
    return model


def small_eva() -> nn.Module:
    model: nn.Module = Eva(
        img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, global_pool="token",
        use_rot_pos_emb=True,
    )  # fmt: skip
    return model


def test_models_in_which_prompts_have_no_place_are_refused():
    config = FineTuningConfig(method="vpt")
    with pytest.raises(UserError, match="VisionTransformer reads all tokens"):
        methods.prepare(small_vit(global_pool="avg"), config, 0)
    with pytest.raises(UserError, match="attention of Eva needs a position for every token"):
        methods.prepare(small_eva(), config, 0)


def test_two_kinds_of_prompts_and_merging_are_refused():
    with pytest.raises(UserError, match="choose one of vpt and vpt_deep"):
        moved("vpt_deep+vpt")
    with pytest.raises(UserError, match="further tokens, not weights"):
        methods.merge(moved("vpt"))
