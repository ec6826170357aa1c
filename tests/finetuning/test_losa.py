"""The LoSA-style network starts as a linear probe and never needs a gradient of the backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.adaptation import policies
from fl_vitlora.config import SCHEMES, FineTuningConfig, load
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.losa import LoSA
from fl_vitlora.finetuning.side_network import block_outputs
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.rng import generator
from fl_vitlora.state import count
from fl_vitlora.testing.method import check_method
from fl_vitlora.training.inputs import frozen_of
from tests.conftest import MakeBackbone, random_vit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "losa"), dtype=torch.float64)


def moved(make_backbone: MakeBackbone, **parameters: Any) -> Backbone:
    """Returns a model in float64 whose mixers and head are somewhere else than at the start."""
    built = make_backbone(method="losa", parameters=parameters)
    built.model.double()
    for number, parameter in enumerate(methods.trainable(built.model).values()):
        parameter.data += 0.3 * draw(*parameter.shape, seed=number)
    return built


@pytest.mark.parametrize("mixers", ["alternate", "channels"])
def test_every_variant_keeps_every_rule(mixers: Any):
    check_method(LoSA(mixers=mixers, mixer_rank=3))


def test_the_untrained_network_is_a_linear_probe_exactly(make_backbone: MakeBackbone):
    images = draw(3, 3, 16, 16).float()
    model = make_backbone(method="losa").model
    assert torch.equal(model(images), random_vit().model(images))


def test_the_outputs_are_those_of_the_equations(make_backbone: MakeBackbone):
    model: Any = moved(make_backbone).model
    images = draw(2, 3, 16, 16)
    refined: Any = 0
    for number, output in enumerate(block_outputs(model, images).unbind(1)):
        tensors = [
            model.get_parameter(f"side_network.mixers.{number}.{name}")
            for name in ("down", "down_bias", "up", "up_bias")
        ]
        h = output + refined
        turned = h if number % 2 == 0 else h.transpose(1, 2)
        down, down_bias, up, up_bias = tensors
        change = F.gelu(turned @ down.T + down_bias) @ up.T + up_bias
        refined = refined + (change if number % 2 == 0 else change.transpose(1, 2))
    expected = model.head(model.norm(output + refined)[:, 0])
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mixers", "tokens"), [("alternate", 17), ("channels", 1)])
def test_features_have_only_the_tokens_that_the_network_needs(
    make_backbone: MakeBackbone, mixers: str, tokens: int
):
    frozen = frozen_of(moved(make_backbone, mixers=mixers).model)
    assert frozen is not None
    images = draw(2, 3, 16, 16)
    features = frozen.features(images)
    assert features.shape == (2, 6, tokens, 96)
    assert torch.equal(features, block_outputs(frozen.model, images)[:, :, :tokens])
    assert torch.equal(frozen.logits(features), frozen.model(images))


@pytest.mark.parametrize("mixers", ["alternate", "channels"])
def test_a_classifier_of_all_tokens_reads_all_tokens(make_backbone: MakeBackbone, mixers: str):
    model: Any = moved(make_backbone, mixers=mixers).model
    model.global_pool, images = "avg", draw(2, 3, 16, 16)
    frozen = frozen_of(model)
    assert frozen is not None
    features = frozen.features(images)
    assert features.shape == (2, 6, 17, 96)
    expected = model.head(model.forward_features(images)[:, 1:].mean(dim=1))
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(frozen.logits(features), model(images))


@pytest.mark.parametrize("mixers", ["alternate", "channels"])
def test_the_logits_are_those_of_the_class_token_of_all_tokens(
    make_backbone: MakeBackbone, mixers: str
):
    """The model computes fewer tokens than its function `forward_features`."""
    model: Any = moved(make_backbone, mixers=mixers).model
    images = draw(2, 3, 16, 16)
    expected = model.forward_head(model.forward_features(images))
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


def test_an_image_gets_the_gradient_of_the_backbone_and_of_the_network(
    make_backbone: MakeBackbone,
):
    """Adaptation at test time and attacks need gradients that pass through frozen blocks."""
    model: Any = moved(make_backbone).model
    images = draw(1, 3, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    step = 1e-5 * draw(1, 3, 16, 16, seed=5)
    with torch.no_grad():
        ahead, behind = (model(images + s).square().sum() for s in (step, -step))
    expected = float((gradient * 2 * step).sum())
    assert float(ahead - behind) == pytest.approx(expected, rel=1e-6)


def test_no_gradient_reaches_the_backbone(make_backbone: MakeBackbone):
    model = moved(make_backbone).model
    model(draw(2, 3, 16, 16)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len([name for name in reached if name.startswith("side_network")]) == 4 * 6
    frozen = frozen_of(model)
    assert frozen is not None
    assert not frozen.features(draw(2, 3, 16, 16)).requires_grad


@pytest.mark.parametrize(
    ("model", "size", "numbers"),
    [("vit_small_patch14_dinov2", 224, 65_478), ("vit_base_patch16_224", 224, 98_526)],
)
def test_as_many_numbers_as_one_can_count(model: str, size: int, numbers: int):
    """Twelve blocks, half of them with a mixer of D channels, half with one of T tokens."""
    with torch.device("meta"):
        vit = timm.create_model(model, img_size=size, num_classes=10)
        vit.requires_grad_(requires_grad=False)
        methods.prepare(vit, FineTuningConfig(method="losa"), 0)
    assert count(methods.trainable(vit)) - count(dict(vit.head.named_parameters())) == numbers


def pixels(images: Tensor) -> Tensor:
    """Returns pixels in [-1, 1], in float64."""
    return images.double() / 127.5 - 1


def turn(model: Any, blocks: Any) -> None:
    """Moves the tensors of token mixers as block scrambling moves the blocks; token 0 stays."""
    order = torch.cat([torch.zeros(1), blocks.flatten() + 1]).long()
    for mixer in model.side_network.mixers[1::2]:
        mixer.down.data = mixer.down.data[:, order]
        mixer.up.data = mixer.up.data[order]
        mixer.up_bias.data = mixer.up_bias.data[order]


@pytest.mark.parametrize("mixers", ["alternate", "channels"])
def test_an_adapted_model_computes_of_ciphertext_what_it_computed_of_plain_images(
    make_backbone: MakeBackbone, mixers: str
):
    """Token mixers must be turned by the key as the positions are; channel mixers need nothing."""
    built = moved(make_backbone, mixers=mixers)
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=generator(1), dtype=torch.uint8)
    cipher = Cipher(steps=SCHEMES["ViT-blockwise"], block_size=4, image_shape=(3, 16, 16))
    key = cipher.key(bytes(range(32)), "losa")
    expected = built.model(pixels(images))
    reader = reader_of(built)
    put_reader(built.model, cipher.adapt(reader, key))
    ciphertext = pixels(cipher.encrypt(images, key))
    if mixers == "alternate":
        assert (built.model(ciphertext) - expected).abs().max() > 0.1
        numbered = replace(reader, position=torch.arange(16.0).unsqueeze(-1))
        turn(built.model, cipher.adapt(numbered, key).position)
    torch.testing.assert_close(built.model(ciphertext), expected, rtol=1e-11, atol=1e-11)


def test_a_key_for_each_client_allows_channel_mixers_only():
    given = {"finetuning.method": "losa", "encryption.scope": "client"}
    with pytest.raises(UserError, match=r"losa mixes tokens.*scope client.*mixers=channels"):
        policies.check(load(None, given))
    policies.check(load(None, {**given, "finetuning.parameters.mixers": "channels"}))
    policies.check(load(None, {**given, "encryption.steps": ["pixel_shuffling"]}))
    policies.check(load(None, {**given, "encryption.scope": "shared"}))


@pytest.mark.parametrize("method", ["losa+patch_embed", "lora+losa", "bias+losa"])
def test_a_part_that_changes_the_backbone_is_refused_beside_it(method: str):
    with pytest.raises(UserError, match="losa needs a frozen backbone, but"):
        policies.check(load(None, {"finetuning.method": method}))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"mixer_rank": 18}, "mixer_rank 18: expected at most 17; the model has 17 tokens"),
        ({"mixer_rank": 97, "mixers": "channels"}, "expected at most 96; the model has 17 tokens"),
    ],
)
def test_a_rank_that_is_too_large_is_refused(parameters: dict[str, Any], problem: str):
    model = random_vit().model
    with pytest.raises(UserError, match=problem):
        methods.prepare(model, FineTuningConfig(method="losa", parameters=parameters), 0)


def test_a_model_without_blocks_of_equal_width_is_refused():
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, depths=(1, 1, 1, 1))
    with pytest.raises(UserError, match="losa needs blocks of equal width"):
        methods.prepare(model, FineTuningConfig(method="losa"), 0)
