"""AdaptFormer adds a scaled bottleneck beside the MLP."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from tests.finetuning.moved_model import moved, numbers_in_a_block_of_vit_b, tokens


def test_the_branch_of_the_paper_is_added_to_the_output_of_the_mlp():
    block, x = moved("adaptformer").blocks[2], tokens()
    own, mlp = block.adaptformer, block.mlp
    branch = F.linear(F.relu(F.linear(x, own.down, own.down_shift)), own.up, own.up_shift)
    alone = mlp.fc2(mlp.act(mlp.fc1(x)))
    assert torch.allclose(mlp(x), alone + 0.1 * branch, atol=1e-13, rtol=0)


def test_the_scale_is_a_setting():
    parameters = {"scale": 2.0, "bottleneck": 3}
    own = moved("adaptformer", parameters=parameters).blocks[0].adaptformer
    assert own.scale == 2.0
    assert own.down.shape == (3, 96)


def test_with_64_numbers_inside_vit_b_trains_as_much_as_in_the_paper():
    """1.19 million in twelve blocks; the paper counts 1.26 million with a head of 100 classes."""
    in_a_block = numbers_in_a_block_of_vit_b("adaptformer", parameters={"bottleneck": 64})
    assert in_a_block == 2 * 768 * 64 + 64 + 768
    assert 1.26e6 < 12 * in_a_block + 100 * 769 < 1.27e6


def test_it_refuses_to_merge():
    with pytest.raises(UserError, match="beside the MLP is not linear"):
        methods.merge(moved("adaptformer"))
