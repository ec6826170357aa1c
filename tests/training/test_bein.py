"""Test-time adaptation to statistics of the source: identity, closed form, and what it leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.feature_statistics import hooked, patch_tokens, watched
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.models.backbone import normalize
from fl_vitlora.testing.predictor import check_predictor
from fl_vitlora.training.bein import (
    BatchBeIN,
    BeIN,
    ClosedFormBeIN,
    closed_form,
    restyled,
    style_loss,
)
from fl_vitlora.training.prediction import predictor_for
from tests.conftest import MakeBackbone

METHOD = "lora+feature_statistics"


@pytest.fixture
def model(make_backbone: MakeBackbone) -> nn.Module:
    return make_backbone(method=METHOD).model.eval()


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the features of patches after the block with statistics, (B, N, D)."""
    seen = list[Tensor]()
    block, _ = watched(model)
    with torch.no_grad(), hooked(block, lambda _module, _inputs, out: seen.append(out)):
        model(images)
    return patch_tokens(model, seen[0])


@torch.no_grad()
def set_source(model: nn.Module, tokens: Tensor) -> None:
    """Makes the statistics of features, (..., D), the statistics of the source."""
    _, statistics = watched(model)
    rows = tokens.double().flatten(0, -2)
    statistics.mean.copy_(rows.mean(dim=0))
    statistics.square.copy_(rows.square().mean(dim=0))


def test_without_steps_the_features_stay_as_they_are():
    torch.manual_seed(0)
    z = torch.randn(2, 16, 8, dtype=torch.float64)
    zero = torch.zeros(2, 1, 8, dtype=torch.float64)
    assert torch.allclose(restyled(z, z.mean(dim=(0, 1)), zero, zero), z, atol=1e-15, rtol=0)
    assert torch.allclose(BeIN(steps=0).adapted(z, 3 + z[0, 0], z[0, 1]), z, atol=1e-14, rtol=0)


@pytest.mark.parametrize("predictor", [BeIN(), ClosedFormBeIN()])
def test_an_image_with_the_statistics_of_the_source_keeps_its_prediction(
    predictor: BeIN, model: nn.Module, images: Tensor
):
    model, one = model.double(), normalize(images[:1]).double()
    z = features(model, one)
    set_source(model, z)
    _, statistics = watched(model)
    with torch.no_grad():
        plain = model(one)
        loss = style_loss(z, z, statistics.mean, statistics.deviation, 1.0)
    assert float(loss) < 1e-12
    assert torch.allclose(predictor(model, one), plain, atol=1e-6)


@pytest.mark.parametrize("predictor", [BeIN(), ClosedFormBeIN(), BatchBeIN()])
def test_no_tensor_of_the_model_changes_and_no_hook_is_left(
    predictor: BeIN, model: nn.Module, images: Tensor
):
    inputs = normalize(images)
    set_source(model, 2 * features(model, inputs) + 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model(inputs)
    adapted = predictor(model, inputs)
    assert not torch.allclose(adapted, plain, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(inputs), plain)
    assert torch.equal(predictor(model, inputs), adapted)


@pytest.mark.parametrize("together", [False, True])
def test_the_closed_form_undoes_a_shift_and_a_scale_of_each_channel(together: bool):
    torch.manual_seed(0)
    z = torch.randn(1 if not together else 3, 16, 8, dtype=torch.float64)
    scale, shift = 0.5 + torch.rand(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    mean, deviation = z.mean(dim=(0, 1)), z.flatten(0, 1).std(dim=0, correction=0)
    predictor = BeIN(steps=math.inf, together=together)
    assert torch.allclose(predictor.adapted(scale * z + shift, mean, deviation), z, atol=1e-13)


def test_the_loss_falls_with_the_steps_towards_that_of_the_closed_form():
    torch.manual_seed(0)
    z = 1.3 * torch.randn(2, 16, 8, dtype=torch.float64) + 0.4
    mean, deviation = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)

    def loss(steps: float) -> float:
        predictor = BeIN(steps=steps, rate=0.01, content=0.0)
        return float(style_loss(predictor.adapted(z, mean, deviation), z, mean, deviation, 0.0))

    losses = [loss(steps) for steps in (0, 1, 10, 100, math.inf)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[1] and losses[4] < 1e-25
    beta, _ = closed_form(z, mean, deviation)
    assert beta.shape == (2, 1, 8)


def test_images_are_adapted_by_themselves(model: nn.Module, images: Tensor):
    """A single image is enough, and gets the answer that it gets in a batch."""
    inputs = normalize(images)
    set_source(model, 2 * features(model, inputs) + 1)
    for predictor in (BeIN(), ClosedFormBeIN()):
        alone = torch.cat([predictor(model, one) for one in inputs.split(1)])
        assert torch.allclose(predictor(model, inputs), alone, atol=1e-4)
    together = BatchBeIN()
    assert not torch.allclose(together(model, inputs)[:1], together(model, inputs[:1]), atol=1e-3)


@pytest.mark.parametrize("predictor", [BeIN(), BeIN(steps=3), ClosedFormBeIN(), BatchBeIN()])
def test_the_contract_of_predictors_is_kept(predictor: BeIN):
    check_predictor(predictor)


def test_without_measured_statistics_the_predictor_is_plain_or_refuses(
    make_backbone: MakeBackbone, images: Tensor, model: nn.Module
):
    with torch.no_grad():
        assert torch.equal(BeIN()(model, normalize(images)), model(normalize(images)))
    with pytest.raises(UserError, match=r"evaluation.predictor: .*lora\+feature_statistics"):
        BeIN()(make_backbone(method="lora").model, normalize(images))


def test_a_method_that_does_not_measure_the_statistics_is_refused_before_a_run():
    for method in (METHOD, "feature_statistics"):
        predictor_for("bein", method_of(FineTuningConfig(method=method)))
    with pytest.raises(UserError, match=r"method bias measures no .*lora\+feature_statistics"):
        predictor_for("bein", method_of(FineTuningConfig(method="bias")))


def test_the_key_does_not_matter_because_the_order_of_patches_does_not():
    torch.manual_seed(0)
    z, order = torch.randn(2, 16, 8, dtype=torch.float64), torch.randperm(16)
    mean, deviation = torch.randn(8).double(), torch.rand(8).double()
    for predictor in (BeIN(), ClosedFormBeIN()):
        moved = predictor.adapted(z[:, order], mean, deviation)
        expected = predictor.adapted(z, mean, deviation)[:, order]
        assert torch.allclose(moved, expected, atol=1e-13)


def test_the_method_is_found_in_the_names_of_messages(model: nn.Module):
    names = [n for n in methods.trainable(model) if "source_statistics" in n]
    assert names == [f"lora:blocks.2.source_statistics.{n}" for n in ("mean", "square")]
