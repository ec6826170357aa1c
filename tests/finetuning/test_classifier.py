"""Every head of a classifier starts at zero and is trained, whatever it is called."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.classifier import (
    head_parameters,
    heads_of,
    outputs_of,
    replace_heads,
)

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}


def distilled() -> nn.Module:
    model: nn.Module = VisionTransformerDistilled(**SMALL, num_classes=7)
    return model.eval().requires_grad_(requires_grad=False)


def test_a_distilled_model_has_two_heads_of_zeros_and_both_are_trained():
    """It averages what they say: one that stays at random would be in every prediction."""
    model = distilled()
    replace_heads(model, 3)
    both = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert head_parameters(model) == both
    assert len(heads_of(model)) == 2
    assert outputs_of(model) == 3
    assert torch.equal(model(torch.randn(2, 3, 16, 16)), torch.zeros(2, 3))
    methods.prepare(model, FineTuningConfig(method="head"), 0)
    assert methods.trainable(model).keys() == both
    assert {methods.group_of(name) for name in both} == {methods.HEAD}
    methods.check_gradients(model, (3, 16, 16))


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_trains_all_heads(method: str):
    model = distilled()
    replace_heads(model, 3)
    methods.prepare(model, FineTuningConfig(method=method), 0)
    assert head_parameters(model) <= methods.trainable(model).keys()


def test_a_head_within_a_module_of_pooling_is_found():
    model = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=12, depths=(1,), num_heads=(2,), window_size=4
    )
    replace_heads(model, 3)
    assert head_parameters(model) == {"head.fc.weight", "head.fc.bias"}
    assert not model(torch.randn(1, 3, 16, 16)).any()


class Renamed(VisionTransformer):  # type: ignore[misc]
    """Calls its classifier otherwise."""

    def __init__(self) -> None:
        super().__init__(**SMALL, num_classes=7)
        self.answer: nn.Module = self.get_submodule("head")
        self.head = nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.answer


def test_a_classifier_whose_name_tells_nothing_is_refused_not_frozen():
    model = Renamed().requires_grad_(requires_grad=False)
    with pytest.raises(UserError, match=r"like tensors of the body \(answer\.bias, answer"):
        methods.prepare(model, FineTuningConfig(method="head"), 0)


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(UserError, match="Linear has no classifier"):
        replace_heads(nn.Linear(2, 2), 3)


def test_timm_says_itself_what_its_classifier_is():
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    assert len(heads_of(model)) == 2
