"""Any plain ViT becomes a frozen backbone with a fresh head, or is refused in one line."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import WEIGHTS_FOLDER, Backbone, build, image_size, normalize
from fl_vitlora.rng import generator

TINY = "vit_tiny_patch16_224"


def random_letters(classes: int = 10, seed: int = 0) -> Backbone:
    return build(ModelConfig(weights="random"), classes, seed)


def parameters(backbone: Backbone) -> dict[str, Tensor]:
    return dict(backbone.model.named_parameters())


def same(a: Backbone, b: Backbone) -> bool:
    return all(torch.equal(tensor, parameters(b)[name]) for name, tensor in parameters(a).items())


def test_the_bundled_model_reads_small_images():
    bundled = build(ModelConfig(), 10, 0)
    assert bundled.image_shape == (3, 16, 16)
    assert bundled.patch_size == 4
    assert bundled.model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_the_bundled_weights_are_used_as_they_are_stored():
    """They were trained on pixels in [-1, 1]; nothing has to be folded into them."""
    stored = load_file(WEIGHTS_FOLDER / "vit_letters_16.safetensors")
    found = parameters(build(ModelConfig(), 10, 0))
    assert all(torch.equal(found[name], weight.float()) for name, weight in stored.items())


def test_pretrained_weights_are_not_random_ones_and_do_not_depend_on_the_seed():
    zero, one = build(ModelConfig(), 10, 0), build(ModelConfig(), 10, 1)
    assert same(zero, one)
    assert not same(zero, random_letters())


def test_random_weights_are_those_of_the_seed():
    torch.manual_seed(5)
    first = random_letters(seed=3)
    torch.rand(10)
    assert same(first, random_letters(seed=3))
    assert not same(first, random_letters(seed=4))


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    random_letters()
    assert torch.equal(before, torch.get_rng_state())


def test_a_backbone_is_frozen_and_in_evaluation_mode():
    backbone = random_letters()
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training


@pytest.mark.parametrize("classes", [1, 2, 100])
def test_the_head_has_an_output_for_each_class(classes: int):
    assert parameters(random_letters(classes))["head.weight"].shape == (classes, 96)


@pytest.mark.parametrize("name", ["vit_letters_16", TINY])
def test_at_first_all_classes_are_equally_likely(name: str):
    config = ModelConfig(name=name, weights="random", image_size=None if name != TINY else (32,))
    built = build(config, 4, 0)
    probabilities = built.model(torch.randn(2, *built.image_shape)).softmax(-1)
    assert torch.equal(probabilities, torch.full((2, 4), 0.25))


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file as the hub has it: the model at its own size, with the head of its old classes."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = timm.create_model(TINY, num_classes=1000).state_dict()
    save_file(state, path)
    return path, state


def test_a_backbone_says_where_its_weights_are_from(tiny_weights: tuple[Path, Any]):
    path, _ = tiny_weights
    built = build(ModelConfig(name=TINY, weights=str(path)), 7, 0)
    assert built.source == str(path)
    assert built.notes == (f"weights {path}: a head in the file was ignored",)
    assert build(ModelConfig(), 7, 0).source == "bundled"
    assert random_letters().source == "random"
    assert build(ModelConfig(), 7, 0).notes == ()


def test_a_local_file_gives_its_weights(tiny_weights: tuple[Path, dict[str, Tensor]]):
    path, state = tiny_weights
    built = build(ModelConfig(name=TINY, weights=str(path)), 7, 0)
    found = parameters(built)
    assert built.image_shape == (3, 224, 224)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], state[n]) for n in state if not n.startswith("head"))
    assert found["head.weight"].shape == (7, 192)


def test_the_position_embedding_is_resampled_to_another_size(
    tiny_weights: tuple[Path, dict[str, Tensor]],
):
    path, state = tiny_weights
    built = build(ModelConfig(name=TINY, weights=str(path), image_size=(64,)), 7, 0)
    found = parameters(built)
    assert built.image_shape == (3, 64, 64)
    assert found["pos_embed"].shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(found["pos_embed"][:, 0], state["pos_embed"][:, 0])  # the class token's
    assert torch.equal(found["patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    assert built.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_another_patch_size_is_taken_where_weights_are_random():
    config = ModelConfig(name=TINY, weights="random", image_size=(32,), patch_size=8)
    built = build(config, 2, 0)
    assert (built.patch_size, built.image_shape) == (8, (3, 32, 32))
    assert parameters(built)["patch_embed.proj.weight"].shape == (192, 3, 8, 8)


@pytest.mark.parametrize("size", [(16,), (16, 16)])
def test_the_bundled_model_may_be_asked_for_its_own_size(size: tuple[int, ...]):
    built = build(ModelConfig(weights="random", image_size=size), 10, 0)
    assert built.image_shape == (3, 16, 16)


def test_images_need_not_be_square():
    config = ModelConfig(name=TINY, weights="random", image_size=(32, 48), patch_size=8)
    assert image_size(config) == (32, 48)
    built = build(config, 2, 0)
    assert built.image_shape == (3, 32, 48)
    assert parameters(built)["pos_embed"].shape == (1, 1 + 4 * 6, 192)
    assert built.model(torch.zeros(1, 3, 32, 48)).shape == (1, 2)


# ImageNet's constants; CLIP's, and no bias in the patch embedding; a half for all channels
NORMALIZED = {
    "deit_tiny_patch16_224": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "vit_xsmall_patch16_clip_224": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    TINY: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def original_and_folded(
    name: str, folder: Path, dtype: torch.dtype
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Builds a model as timm has it, and as `build` does, of the same file with no zeros in it."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        original = timm.create_model(name, img_size=32, num_classes=0)
        with torch.no_grad():
            for parameter in original.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(0, "w")))
        save_file(original.state_dict(), folder / "weights.safetensors")
        config = ModelConfig(
            name=name, weights=str(folder / "weights.safetensors"), image_size=(32,)
        )
        return original.eval(), build(config, 10, 0).model
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", NORMALIZED)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_folded_model_sees_what_the_original_saw(
    name: str, dtype: torch.dtype, most: float, tmp_path: Path
):
    """Pixels in [-1, 1] give the features that the original makes with its own constants."""
    original, folded = original_and_folded(name, tmp_path, dtype)
    mean, std = (torch.tensor(c, dtype=dtype).view(3, 1, 1) for c in NORMALIZED[name])
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=generator(1, "images")).to(dtype)
    with torch.no_grad():
        expected = original.forward_features((pixels / 255 - mean) / std)  # type: ignore[operator]
        found = folded.forward_features(pixels / 127.5 - 1)  # type: ignore[operator]
    assert float((found - expected).abs().max() / expected.abs().max()) < most


@pytest.mark.parametrize("name", NORMALIZED)
def test_only_what_has_to_be_folded_is(name: str, tmp_path: Path):
    original, folded = original_and_folded(name, tmp_path, torch.float32)
    before, after = dict(original.named_parameters()), dict(folded.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    weight, bias = "patch_embed.proj.weight", "patch_embed.proj.bias"
    assert changed == (set() if name == TINY else {weight, bias} & before.keys())
    assert (bias in before) == (name != "vit_xsmall_patch16_clip_224")
    assert bias in after
    assert not any(parameter.requires_grad for parameter in after.values())


def test_normalization_maps_black_and_white_to_minus_one_and_one():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8)
    assert normalize(pixels).tolist() == pytest.approx([-1, 1, -0.6])
    assert normalize(pixels).dtype == torch.float32


def test_a_negative_pixel_is_a_negative_number(images: Tensor):
    """The negative-positive transformation is a change of sign."""
    assert torch.allclose(normalize(255 - images), -normalize(images), atol=1e-6)


def test_normalization_leaves_its_input_alone(images: Tensor):
    before = images.clone()
    normalize(images)
    assert torch.equal(before, images)


@pytest.mark.parametrize(
    ("config", "expectation"),
    [
        (ModelConfig(name="vit_leters_16"), r"unknown model .* did you mean 'vit_letters_16'"),
        (ModelConfig(name="vit_tiny_patch16_244"), rf"did you mean '{TINY}'"),
        (ModelConfig(weights="nowhere.safetensors"), "'pretrained', 'random', or an existing file"),
        (
            ModelConfig(name=TINY, weights="nowhere.bin"),
            "'pretrained', 'random', or an existing file",
        ),
        (ModelConfig(image_size=(32,)), r"supports only img_size 16, got \(32, 32\)"),
        (ModelConfig(patch_size=8), "supports only patch_size 4, got 8"),
        (ModelConfig(name="resnet18", weights="random"), "resnet18 has no patch embedding"),
        (
            ModelConfig(name="resnet18", weights="random", image_size=(32,)),
            "does not support the given image or patch size",
        ),
        (
            ModelConfig(name=TINY, weights="random", image_size=(32,), patch_size=5),
            r"patch size 5 does not divide .* nearest patch size that divides it is 4",
        ),
        (
            ModelConfig(name=TINY, weights="random", image_size=(8,)),
            r"model\.image_size 8x8 is smaller than one patch of .* at least",
        ),
    ],
)
def test_models_that_cannot_serve_are_refused(config: ModelConfig, expectation: str):
    with pytest.raises(UserError, match=expectation) as caught:
        build(config, 10, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_letters_16", TINY])
def test_weights_of_another_model_are_refused(tmp_path: Path, name: str):
    path = tmp_path / "other.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors"):
        build(ModelConfig(name=name, weights=str(path)), 10, 0)


@pytest.mark.parametrize("name", ["vit_letters_16", TINY])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        build(ModelConfig(name=name, weights=str(path)), 10, 0)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=2))


def checkpoint(path: Path, bomb: Bomb) -> None:
    torch.save({"head.weight": bomb}, path)


def archive(path: Path, bomb: Bomb) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.array([bomb], dtype=object))


@pytest.mark.parametrize("write", [pickled, checkpoint, archive])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz", ".pkl"])
@pytest.mark.parametrize("name", ["vit_letters_16", TINY])
def test_no_weights_run_what_stands_in_them(
    tmp_path: Path, name: str, suffix: str, write: Callable[[Path, Bomb], None]
):
    path, sign = tmp_path / f"weights{suffix}", tmp_path / "it was run"
    write(path, Bomb(sign))
    with pytest.raises(UserError, match="weights") as caught:
        build(ModelConfig(name=name, weights=str(path)), 10, 0)
    assert "\n" not in str(caught.value)
    assert not sign.exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)  # as an older timm would
    assert not sign.exists()
    pickle.loads(pickle.dumps(Bomb(sign)))
    assert sign.exists()


@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.zeros(2)}])
def test_a_file_that_lacks_weights_is_refused_and_not_filled_up_at_random(
    tmp_path: Path, content: Any
):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt") as caught:
        build(ModelConfig(name=TINY, weights=str(tmp_path / "weights.pt"), image_size=(32,)), 10, 0)
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_one_tensor_is_refused_with_its_name(
    tiny_weights: tuple[Path, dict[str, Tensor]], tmp_path: Path
):
    _, state = tiny_weights
    name = "blocks.3.mlp.fc1.weight"
    save_file({n: w for n, w in state.items() if n != name}, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=rf"1 tensor \({name}\) missing"):
        build(ModelConfig(name=TINY, weights=str(tmp_path / "cut.safetensors")), 10, 0)


def test_layer_scale_of_another_model_is_refused_by_name(tmp_path: Path):
    """timm would drop it, and what is left falls to chance."""
    other = timm.create_model(TINY, num_classes=1000, init_values=1e-5).state_dict()
    save_file(other, tmp_path / "dinov2.safetensors")
    with pytest.raises(UserError, match=r"24 tensors \(blocks\.0\.ls1\.gamma.* not used") as caught:
        build(ModelConfig(name=TINY, weights=str(tmp_path / "dinov2.safetensors")), 10, 0)
    assert "\n" not in str(caught.value)


def test_weights_that_no_hub_gives_are_one_line(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"are not available from the hub .* model\.weights=FILE"
    ) as e:
        build(ModelConfig(name="vit_small_patch16_224"), 10, 0)
    assert "\n" not in str(e.value)
