"""Key adaptation on timm models: the adapted model computes of ciphertext what it did of images."""

from __future__ import annotations

import functools
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import SCHEMES, ModelConfig
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import Backbone, build
from fl_vitlora.models.reading import (
    POSITION,
    WEIGHT,
    KernelPerPatch,
    adapted_to,
    exchanged_reader,
    open_reader,
    put_reader,
    reader_of,
    with_exchanged_reader,
    write_reader,
)
from fl_vitlora.rng import generator
from fl_vitlora.storage.checksummed import write_sealed

SECRET = bytes(range(32))
SHARED = SCHEMES["ViT-blockwise"]
ORDERS = [order for n in range(4) for order in permutations(SHARED, n)]
AFFINE = tuple(step for step in STEPS if "nibble" not in step)
# with one key for all blocks, and with one for each
CIPHERS: dict[str, tuple[tuple[str, ...], bool]] = {
    **{step: ((step,), False) for step in AFFINE},
    **{name: (SCHEMES[name], False) for name in ("ViT-blockwise", "EtC", "PE")},
    "pixel_shuffling per block": (("pixel_shuffling",), True),
    "negative_positive per block": (("negative_positive",), True),
    "ViT-blockwise per block": (SHARED, True),
    "all": (AFFINE, False),
    "all per block": (AFFINE[::-1], True),
}

# class token; pooled; register tokens without an own position; two extra tokens; no bias in the
# patch embedding; images that are not square
MODELS: dict[str, dict[str, Any]] = {
    "vit_letters_16": {},
    "vit_base_patch16_siglip_224": {"image_size": (48, 32)},
    "vit_small_patch14_reg4_dinov2": {"image_size": (56,)},
    "deit_tiny_distilled_patch16_224": {"image_size": (48,)},
    "vit_xsmall_patch16_clip_224": {"image_size": (48,)},
    "deit_tiny_patch16_224": {"image_size": (32, 48)},
    "vit_tiny_patch16_224": {"image_size": (48, 32), "patch_size": 8},
}


def random_model(name: str, **sizes: Any) -> Backbone:
    """Builds a model whose head and positions are not zero, so that nothing holds by accident."""
    built = build(ModelConfig(name=name, weights="random", **sizes), 10, 0)
    chance = generator(0, "weights")
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=chance))
    return built


@functools.lru_cache(maxsize=1)
def shared_model(name: str) -> Backbone:
    """Builds a model for several tests; `adapted_error` leaves it as it was."""
    return random_model(name, **MODELS[name])


def logits(backbone: Backbone, images: Tensor, precision: torch.dtype) -> Tensor:
    with torch.no_grad():
        out: Tensor = backbone.model.to(precision)(images.to(precision) / 127.5 - 1)
    return out


def adapted_error(
    backbone: Backbone, steps: tuple[str, ...], precision: torch.dtype, *, per_block: bool = False
) -> float:
    """Measures the largest difference of logits, relative to the largest logit."""
    backbone.model.to(precision)
    model: Any = backbone.model
    convolution, origin = model.patch_embed.proj, reader_of(backbone)
    shape = (2, *backbone.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(1, "images"))
    cipher = Cipher(
        steps=steps,
        block_size=backbone.patch_size,
        image_shape=backbone.image_shape,
        per_block=per_block,
    )
    key = cipher.key(SECRET, "test")
    expected = logits(backbone, images, precision)
    try:
        put_reader(model, cipher.adapt(origin, key))
        given = logits(backbone, cipher.encrypt(images, key), precision)
    finally:
        model.patch_embed.proj = convolution
        put_reader(model, origin)
    assert torch.equal(logits(backbone, images, precision), expected)  # it is as it was
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize(("precision", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if number % 2 else [])
        for number, name in enumerate(MODELS)  # every other one in the first tier
    ],
)
def test_adapted_model_reads_ciphertext_exactly(
    name: str, precision: torch.dtype, most: float, cipher: str
) -> None:
    steps, per_block = CIPHERS[cipher]
    assert adapted_error(shared_model(name), steps, precision, per_block=per_block) < most


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
def test_every_order_of_steps_has_its_adaptation(steps: tuple[str, ...]) -> None:
    assert adapted_error(shared_model("vit_letters_16"), steps, torch.float64) < 1e-12


@pytest.mark.parametrize("steps", [SHARED, SCHEMES["EtC"], SCHEMES["PE"]], ids="+".join)
def test_without_adaptation_or_with_a_wrong_key_the_logits_differ(steps: tuple[str, ...]) -> None:
    backbone = random_model("vit_letters_16")
    cipher = Cipher(steps=steps, block_size=4, image_shape=(3, 16, 16))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    right, wrong = cipher.key(SECRET, "right"), cipher.key(SECRET, "wrong")
    expected = logits(backbone, images, torch.float32)
    unadapted = logits(backbone, cipher.encrypt(images, right), torch.float32)
    put_reader(backbone.model, cipher.adapt(reader_of(backbone), wrong))
    misread = logits(backbone, cipher.encrypt(images, right), torch.float32)
    assert min((other - expected).abs().max() for other in (unadapted, misread)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "vit_small_patch16_dinov3"])
def test_positions_that_are_not_added_are_refused_for_scrambling_only(name: str) -> None:
    backbone = random_model(name)
    with pytest.raises(UserError, match="no key adaptation"):
        adapted_error(backbone, ("block_scrambling",), torch.float64)
    assert adapted_error(backbone, ("pixel_shuffling", "negative_positive"), torch.float64) < 1e-12


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (4, 4)])
def test_equal_kernels_for_all_patches_are_a_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 10, 4, stride=4, bias=bias).double()
    patches = size[0] // 4 * (size[1] // 4)
    weight = convolution.weight.detach().flatten(1).expand(patches, -1, -1)
    wide = KernelPerPatch(weight.clone(), convolution.bias, (4, 4))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert wide.in_channels == 3
    assert torch.allclose(wide(images), convolution(images), atol=1e-12, rtol=0)


def test_every_patch_is_read_with_its_own_kernel() -> None:
    """Kernels are numbered as patches are, row by row; here each is a multiple of the first."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 10, 4, stride=4, bias=False).double()
    weight = convolution.weight.detach().flatten(1) * torch.arange(6).view(6, 1, 1)
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected = convolution(images) * torch.arange(6).view(2, 3)
    assert torch.allclose(
        KernelPerPatch(weight, None, (4, 4))(images), expected, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("trained", [True, False])
def test_a_wider_reader_is_trained_where_the_old_one_was(trained: bool) -> None:
    backbone = random_model("vit_letters_16")
    model: Any = backbone.model
    model.patch_embed.proj.requires_grad_(trained)
    wide = reader_of(backbone).weight_of_blocks(16)
    put_reader(model, PatchReader(weight=wide, position=None))
    parameters = dict(model.patch_embed.named_parameters())
    assert parameters["proj.weight"].shape == (16, 96, 48)
    assert {n: p.requires_grad for n, p in parameters.items()} == {
        "proj.weight": trained,
        "proj.bias": trained,
    }


def test_a_reader_with_a_kernel_for_every_patch_is_read_back() -> None:
    backbone = random_model("vit_letters_16")
    origin = reader_of(backbone)
    assert origin.position is not None
    wide = PatchReader(
        weight=torch.randn(16, 96, 48, generator=generator(0, "wide")), position=-origin.position
    )
    for _ in range(2):  # once instead of the convolution, once over another such reader
        put_reader(backbone.model, wide)
        found = reader_of(backbone)
        assert found.position is not None
        assert wide.position is not None
        assert torch.equal(found.weight, wide.weight)
        assert torch.equal(found.position, wide.position)
        wide = PatchReader(weight=-wide.weight, position=2 * wide.position)


def test_putting_a_reader_copies_it() -> None:
    backbone = random_model("vit_letters_16")
    for weight in (torch.ones(96, 48), torch.ones(16, 96, 48)):
        put_reader(backbone.model, PatchReader(weight=weight, position=None))
        weight.zero_()
        assert (reader_of(backbone).weight == 1).all()
        reader_of(backbone).weight.zero_()
        assert (reader_of(backbone).weight == 1).all()


@pytest.mark.parametrize("kernels", [(), (16,)], ids=["one kernel", "a kernel per patch"])
def test_the_reader_of_exchanged_tensors_can_be_exchanged(kernels: tuple[int, ...]) -> None:
    """Positions of patches come last; those of a class token before them are nobody's."""
    weight = torch.randn(16, 96, 48) if kernels else torch.randn(96, 3, 4, 4)
    state = {WEIGHT: weight, "head.bias": torch.ones(3), POSITION: torch.randn(1, 17, 96)}
    found = exchanged_reader(state, 16)
    assert found.weight.shape == (*kernels, 96, 48)
    assert found.position is not None
    assert torch.equal(found.position, state[POSITION][0, 1:])
    again = with_exchanged_reader(state, found)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    doubled = with_exchanged_reader(
        state, PatchReader(weight=2 * found.weight, position=2 * found.position)
    )
    assert torch.equal(doubled[WEIGHT], 2 * weight)
    assert torch.equal(doubled[POSITION][:, 1:], 2 * state[POSITION][:, 1:])
    assert torch.equal(doubled[POSITION][:, 0], state[POSITION][:, 0])
    assert torch.equal(doubled["head.bias"], state["head.bias"])


def test_where_positions_are_not_exchanged_an_empty_one_stands_for_them() -> None:
    state = {WEIGHT: torch.randn(96, 3, 4, 4)}
    found = exchanged_reader(state, 16)
    assert found.position is not None
    assert found.position.shape == (16, 0)
    assert with_exchanged_reader(state, found).keys() == state.keys()


@pytest.mark.parametrize("kernels", [(), (16,)], ids=["one kernel", "a kernel per patch"])
@pytest.mark.parametrize("placed", [True, False], ids=["positions", "no positions"])
def test_a_stored_reader_reads_back_equal(
    tmp_path: Path, kernels: tuple[int, ...], placed: bool
) -> None:
    reader = PatchReader(
        weight=torch.randn(*kernels, 96, 48).transpose(-1, -2),
        position=torch.randn(16, 96) if placed else None,
    )
    write_reader(tmp_path / "reader.safetensors", reader)
    again = open_reader(tmp_path / "reader.safetensors")
    assert torch.equal(reader.weight, again.weight)
    assert (again.position is not None) == placed
    if reader.position is not None and again.position is not None:
        assert torch.equal(reader.position, again.position)


def test_a_stored_reader_is_its_owners_alone_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    assert adapted_to(path) == ""
    write_reader(path, PatchReader(weight=torch.randn(96, 48), position=None), "0123")
    assert path.stat().st_mode & 0o077 == 0
    assert adapted_to(path) == "0123"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    for read in (open_reader, adapted_to):
        with pytest.raises(UserError, match=r"reader\.safetensors is damaged"):
            read(path)
    write_sealed(path, {"position": torch.zeros(2)}, {})
    with pytest.raises(UserError, match="is not a patch reader"):
        open_reader(path)
