"""Key adaptation on timm models: the adapted model computes of ciphertext what it did of images."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from fl_vitlora.config import SCHEMES, ModelConfig
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import Backbone, Normalization, build
from fl_vitlora.models.reading import open_reader, put_reader, reader_of, write_reader
from fl_vitlora.rng import generator

SECRET = bytes(range(32))
ALL_STEPS = SCHEMES["ViT-blockwise"]
ORDERS = [order for n in range(4) for order in permutations(ALL_STEPS, n)]

# class token; pooled; register tokens without an own position; two extra tokens
MODELS = {
    "vit_letters_16": {},
    "vit_base_patch16_siglip_224": {"image_size": 64},
    "vit_small_patch14_reg4_dinov2": {"image_size": 56},
    "deit_tiny_distilled_patch16_224": {"image_size": 48},
    "vit_tiny_patch16_224": {"image_size": 32, "patch_size": 8},
}


def random_model(name: str, **sizes: int) -> Backbone:
    """Builds a model whose head and positions are not zero, so that nothing holds by accident."""
    built = build(ModelConfig(name=name, weights="random", **sizes), 10, 0)
    chance = generator(0, "weights")
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=chance))
    return built


def logits(backbone: Backbone, images: Tensor, precision: torch.dtype) -> Tensor:
    pixels = images.to(precision).div(255)
    norm = backbone.normalization
    with torch.no_grad():
        out: Tensor = backbone.model.to(precision)((pixels - norm.mean) / norm.std)
    return out


def adapted_error(backbone: Backbone, steps: tuple[str, ...], precision: torch.dtype) -> float:
    """Measures the largest difference of logits, relative to the largest logit."""
    backbone.model.to(precision)
    shape = (2, *backbone.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(1, "images"))
    cipher = Cipher(steps=steps, block_size=backbone.patch_size, image_shape=backbone.image_shape)
    key = cipher.key(SECRET, "test")
    expected = logits(backbone, images, precision)
    put_reader(backbone.model, cipher.adapt(reader_of(backbone), key))
    given = logits(backbone, cipher.encrypt(images, key), precision)
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("precision", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_adapted_model_reads_ciphertext_exactly(
    name: str, precision: torch.dtype, most: float
) -> None:
    assert adapted_error(random_model(name, **MODELS[name]), ALL_STEPS, precision) < most


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
def test_every_order_of_steps_has_its_adaptation(steps: tuple[str, ...]) -> None:
    assert adapted_error(random_model("vit_letters_16"), steps, torch.float64) < 1e-12


@pytest.mark.parametrize(("mean", "std"), [(0.449, 0.226), (0.0, 1.0), (0.5, 0.25)])
def test_any_uniform_normalisation_is_folded_in(mean: float, std: float) -> None:
    plain = random_model("vit_letters_16")
    other = Backbone(
        model=plain.model,
        image_shape=plain.image_shape,
        patch_size=plain.patch_size,
        normalization=Normalization(mean=mean, std=std),
    )
    assert adapted_error(other, ALL_STEPS, torch.float64) < 1e-12


def test_without_adaptation_or_with_a_wrong_key_the_logits_differ() -> None:
    backbone = random_model("vit_letters_16")
    cipher = Cipher(steps=ALL_STEPS, block_size=4, image_shape=(3, 16, 16))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    right, wrong = cipher.key(SECRET, "right"), cipher.key(SECRET, "wrong")
    expected = logits(backbone, images, torch.float32)
    unadapted = logits(backbone, cipher.encrypt(images, right), torch.float32)
    put_reader(backbone.model, cipher.adapt(reader_of(backbone), wrong))
    misread = logits(backbone, cipher.encrypt(images, right), torch.float32)
    assert min((other - expected).abs().max() for other in (unadapted, misread)) > 0.1


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "vit_small_patch16_dinov3"])
def test_positions_that_are_not_added_are_refused_for_scrambling_only(name: str) -> None:
    backbone = random_model(name)
    with pytest.raises(UserError, match="no key adaptation"):
        adapted_error(backbone, ("block_scrambling",), torch.float64)
    assert adapted_error(backbone, ("pixel_shuffling", "negative_positive"), torch.float64) < 1e-12


def test_a_stored_reader_reads_back_equal(tmp_path) -> None:
    reader = reader_of(random_model("vit_letters_16"))
    write_reader(tmp_path / "reader.safetensors", reader)
    again = open_reader(tmp_path / "reader.safetensors")
    assert torch.equal(reader.weight, again.weight)
    assert torch.equal(reader.bias, again.bias)
    assert reader.position is not None
    assert again.position is not None
    assert torch.equal(reader.position, again.position)
