"""The pre-trained vision transformer: by timm's name, with bundled, hub or local weights.

This is the only place that builds a model with timm. The result is a plain timm model with a fresh
head; what of it is trained is the business of `finetuning`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.rng import derive_seed

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SafetensorError,
    UnpicklingError,
)

# A checkpoint is data: older versions of timm would run what stands in one.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

SMALL: Mapping[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "mlp_ratio": 3.0,
}
BUNDLED: Mapping[str, Mapping[str, Any]] = {
    "vit_letters_16": SMALL,  # pre-trained to be addressed by ever new keys
    "vit_letters_16_plain": SMALL,  # pre-trained on plain letters only, for comparison
}


def normalize(images: Tensor) -> Tensor:
    """Turns uint8 pixels q of any shape into floats in [-1, 1]: (q / 255 - 0.5) / 0.5.

    These constants suit encrypted images: they are the same for all channels, which shuffling
    mixes, and an inverted pixel 255 - q becomes the negative. What a model was trained with instead
    is folded into its patch embedding by `build`.
    """
    return images.to(torch.get_default_dtype()).div_(255).sub_(0.5).div_(0.5)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model and what must be known to feed it.

    Attributes:
        model: A timm model with a fresh head.
        image_shape: (C, H, W) that it takes.
        patch_size: Pixels a side.
        built: The parameters of the model as it was built, by name. A fine-tuning method may add
            others to the model, and may move these to other names; it does not change this list.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    patch_size: int
    built: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def image_size(config: ModelConfig) -> tuple[int, int] | None:
    """Returns height and width as they are asked for; none if they are the model's own.

    Example:
        >>> image_size(ModelConfig(image_size=(32,))), image_size(ModelConfig(image_size=(32, 48)))
        ((32, 32), (32, 48))
    """
    if config.image_size is None:
        return None
    return config.image_size[0], config.image_size[-1]


def import_timm() -> None:
    """Imports timm, which takes seconds, before it is needed."""
    import timm.models.vision_transformer  # noqa: F401


def build(config: ModelConfig, classes: int, seed: int) -> Backbone:
    """Builds the backbone.

    Args:
        config: Name, weights and sizes.
        classes: Outputs of the fresh head.
        seed: Of the head, and of all weights where they are random.

    Returns:
        The backbone, on the CPU, in evaluation mode, every parameter frozen.

    Raises:
        UserError: When name, weights or sizes do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model = _bundled(config) if config.name in BUNDLED else _from_timm(config)
        _replace_head(model, classes)
    patch_embedding = _patch_embedding(model, config.name)
    defaults: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    _fold_normalization(patch_embedding.proj, defaults.get("mean", 0.5), defaults.get("std", 0.5))
    model.eval().requires_grad_(requires_grad=False)
    height, width = patch_embedding.img_size
    if min(height, width) < patch_embedding.patch_size[0]:
        raise UserError(
            f"model.image_size {height}x{width}: not a single patch of {config.name} fits in; it "
            f"has {patch_embedding.patch_size[0]} pixels a side"
        )
    return Backbone(
        model=model,
        image_shape=(patch_embedding.proj.in_channels, height, width),
        patch_size=patch_embedding.patch_size[0],
        built=dict(model.named_parameters()),
    )


def _bundled(config: ModelConfig) -> nn.Module:
    """Builds a model whose weights ship with the package."""
    from timm.models.vision_transformer import VisionTransformer

    shape = dict(BUNDLED[config.name])
    given = {"img_size": image_size(config), "patch_size": config.patch_size}
    for name, size in given.items():
        side = shape[name]
        if size not in (None, side, (side, side)):
            raise UserError(
                f"{config.name} is made for {name} {side}, not {size}; "
                "take a timm model for other sizes: --model vit_tiny_patch16_224"
            )
    model: nn.Module = VisionTransformer(**shape, num_classes=0)
    if config.weights != "random":
        _load(model, _bundled_weights(config), config.name)
    return model


def _bundled_weights(config: ModelConfig) -> Path:
    if config.weights == "pretrained":
        return WEIGHTS_FOLDER / f"{config.name}.safetensors"
    return _existing_file(config.weights)


def _load(model: nn.Module, path: Path, name: str) -> None:
    try:
        state = {key: value.to(torch.float32) for key, value in load_file(path).items()}
        model.load_state_dict(state)
    except (*UNREADABLE, RuntimeError) as error:
        raise UserError(f"weights {path} do not fit {name}: {_one_line(error)}") from None


def _from_timm(config: ModelConfig) -> nn.Module:
    """Builds any timm ViT at the sizes asked for, its position embedding resampled to them."""
    import timm

    if not timm.is_model(config.name):
        raise unknown("model", config.name, [*BUNDLED, *timm.list_models(["vit_*", "deit*"])])
    sizes = {"img_size": image_size(config), "patch_size": config.patch_size}
    arguments: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if config.weights not in ("pretrained", "random"):
        arguments["pretrained_cfg_overlay"] = {"file": str(_existing_file(config.weights))}
    _check_patch_size(config)

    def create() -> nn.Module:
        model: nn.Module = timm.create_model(
            config.name, pretrained=config.weights != "random", num_classes=0, **arguments
        )
        return model

    model = _explain(create, config)
    if "pretrained_cfg_overlay" in arguments:
        _expect_same(model, create(), config)
    return model


def _expect_same(model: nn.Module, again: nn.Module, config: ModelConfig) -> None:
    """Refuses a file that lacks weights: timm leaves those at random, so that no two are the same.

    Raises:
        UserError: With how many there are, and the first of them.
    """
    other = dict(again.named_parameters())
    drawn = [n for n, weight in model.named_parameters() if not torch.equal(weight, other[n])]
    if drawn:
        raise UserError(
            f"weights {config.weights} do not fit {config.name}: {len(drawn)} tensors are missing, "
            f"first {drawn[0]}"
        )


def _check_patch_size(config: ModelConfig) -> None:
    from fl_vitlora.encryption.blocks import grid

    size = image_size(config)
    if size is not None and config.patch_size is not None:
        grid(*size, config.patch_size)


def _explain(create: Callable[[], nn.Module], config: ModelConfig) -> nn.Module:
    """Turns what timm and the hub raise into one line for the user."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is about to fail, or is no matter
            return create()
    except TypeError as error:
        raise UserError(
            f"model {config.name} takes no other image or patch size ({_one_line(error)})"
        ) from error
    except (*UNREADABLE, RuntimeError, ValueError, AssertionError) as error:
        local = config.weights not in ("pretrained", "random")
        cause = f"from {config.weights}" if local else "from the hub"
        raise UserError(
            f"weights of {config.name} cannot be had {cause} ({_one_line(error)}); offline, give "
            "a file: --set model.weights=FILE, or train from nothing: --set model.weights=random"
        ) from error


def _existing_file(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"model.weights {path!r}: expected 'pretrained', 'random', or a file")
    return Path(path)


def _replace_head(model: nn.Module, classes: int) -> None:
    """Puts a head of zeros: all classes are equally likely at first, whatever the features."""
    reset = getattr(model, "reset_classifier", None)
    if not callable(reset):
        raise UserError(f"{type(model).__name__} has no classifier that could be replaced")
    reset(classes)
    head = getattr(model, "head", None)
    for parameter in head.parameters() if isinstance(head, nn.Linear) else ():
        nn.init.zeros_(parameter)


def _patch_embedding(model: nn.Module, name: str) -> Any:
    """Finds the patch embedding; only models that start with one can read encrypted images."""
    found = getattr(model, "patch_embed", None)
    if found is None or not isinstance(getattr(found, "proj", None), nn.Conv2d):
        raise UserError(
            f"model {name} has no patch embedding of non-overlapping patches; "
            "take a plain ViT, for example vit_base_patch16_224"
        )
    return found


@torch.no_grad()
def _fold_normalization(
    convolution: nn.Conv2d, mean: float | Sequence[float], std: float | Sequence[float]
) -> None:
    """Lets a patch embedding made for (q/255 - mean) / std take pixels in [-1, 1], in place.

    With u in [-1, 1],  (q/255 - mean) / std = u·(0.5 / std) + (0.5 - mean) / std  in every channel:
    a factor for the weight and, summed over a patch, a constant for the bias.
    """
    means, stds = (torch.tensor(constant).flatten() for constant in (mean, std))
    if len(means) not in (1, convolution.in_channels):
        means, stds = means.mean()[None], stds.mean()[None]
    means, stds = (c.expand(convolution.in_channels) for c in (means, stds))
    constant = convolution.weight.sum(dim=(2, 3)) @ ((0.5 - means) / stds)
    convolution.weight.mul_((0.5 / stds).view(1, -1, 1, 1))
    if convolution.bias is not None:
        convolution.bias.add_(constant)
    elif constant.any():
        convolution.bias = nn.Parameter(constant)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
