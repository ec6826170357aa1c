"""Houlsby adapters change the outputs of attention and MLP in series."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from tests.conftest import random_vit
from tests.finetuning.moved_model import moved, numbers_in_a_block_of_vit_b, tokens


@pytest.mark.parametrize(("place", "name"), [("attn", "houlsby_attn"), ("mlp", "houlsby_mlp")])
def test_the_output_of_each_module_passes_through_a_bottleneck(place: str, name: str):
    block, x = moved("houlsby").blocks[1], tokens()
    own = getattr(block, name)
    whole: Any = random_vit().model.double().eval()
    plain = getattr(whole.blocks[1], place)
    y = plain(x)
    bent = F.linear(F.gelu(F.linear(y, own.down, own.down_shift)), own.up, own.up_shift)
    assert torch.allclose(getattr(block, place)(x), y + bent, atol=1e-13, rtol=0)


def test_two_adapters_a_block_are_trained():
    assert numbers_in_a_block_of_vit_b("houlsby") == 2 * (2 * 768 * 8 + 8 + 768)


def test_it_refuses_to_merge():
    with pytest.raises(UserError, match="after attention and MLP are not linear"):
        methods.merge(moved("houlsby"))
