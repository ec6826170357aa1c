"""The pre-trained vision transformer: a model of timm with a new head.

The weights of the model are part of this package (bundled), come from the Hugging Face hub, or are
in a local file. The package `finetuning` decides which parameters of the model are trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import replace_heads
from fl_vitlora.models import timm_models
from fl_vitlora.models.fitting import fit
from fl_vitlora.models.start import start_of
from fl_vitlora.models.weight_file import read_weights
from fl_vitlora.rng import derive_seed

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
PRETRAINED, RANDOM = "pretrained", "random"

# Forces torch to read a checkpoint as data: older versions of timm would run code inside the file.
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
    "vit_letters_16": SMALL,  # pre-trained to adapt quickly to new keys
    "vit_letters_16_plain": SMALL,  # pre-trained on plain letters only, for comparison
}


def normalize(images: Tensor) -> Tensor:
    """Converts uint8 pixels q of any shape into floats in [-1, 1]: (q / 255 - 0.5) / 0.5.

    The constants 0.5 suit encrypted images for two reasons: they are the same for all channels,
    which pixel shuffling mixes; and if a pixel q is inverted to 255 - q, the float only changes its
    sign. If a model was trained with other constants, `build` changes the patch embedding of the
    model so that its tokens stay the same.
    """
    return images.to(torch.get_default_dtype()).div_(255).sub_(0.5).div_(0.5)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model, the sizes of its input images, and the origin of its weights.

    Attributes:
        model: A timm model with a new head.
        image_shape: The shape (C, H, W) of the model's input images: channels, height and width.
        patch_size: The side of a patch in pixels.
        built: The parameters by name, as they were when the model was built. A fine-tuning method
            may later add and rename parameters of the model, but does not change this mapping.
        source: The origin of the weights: "bundled", "random", timm's tag and repository, or the
            path of the file.
        notes: Sentences for the user about the weights, for example about tensors that were not
            used.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    patch_size: int
    built: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    source: str = RANDOM
    notes: tuple[str, ...] = ()

    @property
    def patches(self) -> int:
        """Returns the number of patches of an image."""
        _, height, width = self.image_shape
        return (height // self.patch_size) * (width // self.patch_size)


def image_size(config: ModelConfig) -> tuple[int, int] | None:
    """Returns the configured height and width, or None if the model's own size is used.

    Example:
        >>> image_size(ModelConfig(image_size=(32,))), image_size(ModelConfig(image_size=(32, 48)))
        ((32, 32), (32, 48))
    """
    if config.image_size is None:
        return None
    return config.image_size[0], config.image_size[-1]


def import_timm() -> None:
    """Imports timm early, because the import takes seconds."""
    import timm.models.vision_transformer  # noqa: F401


def build(config: ModelConfig, classes: int | Sequence[str], seed: int) -> Backbone:
    """Builds the backbone: loads the pre-trained model and replaces its head.

    Args:
        config: The name, the weights and the sizes of the model.
        classes: The names of the classes that the new head distinguishes, or their number. If the
            weights are those of a finished run, the new head gets the run's rows for the classes
            that the run also had. All other rows are zero, and so are all rows if `classes` is a
            number.
        seed: The seed of the new head, and of all other weights if `config` asks for random
            weights.

    Returns:
        The backbone on the CPU, in evaluation mode, with all parameters frozen.

    Raises:
        UserError: When the name is unknown, or when the weights or the sizes do not fit the model.
    """
    start = start_of(config)
    number = classes if isinstance(classes, int) else len(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        if start is not None:
            model = _small(config) if config.name in BUNDLED else _created(config)[0]
            notes = start.fill(model, config.name, classes)
            return _described(model, config.name, start.told, notes)
        model, source, notes = _bundled(config) if config.name in BUNDLED else _from_timm(config)
        replace_heads(model, number)
    defaults: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    projection = patch_embedding(model, config.name).proj
    _fold_normalization(projection, defaults.get("mean", 0.5), defaults.get("std", 0.5))
    return _described(model, config.name, source, notes)


def draft(config: ModelConfig, classes: int) -> Backbone:
    """Builds a model without memory for its tensors, to check settings within a second.

    Args:
        config: The name, the weights and the sizes of the model. The function checks that the
            weights are available, but does not read them.
        classes: The number of classes that the head distinguishes.

    Returns:
        The backbone on torch's device `meta`, on which tensors have shapes but no numbers.

    Raises:
        UserError: When the name is unknown, the sizes do not fit the model, or the weights are not
            available.
    """
    if config.weights not in (PRETRAINED, RANDOM):
        _existing_file(config.weights)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if config.name in BUNDLED:
            model, loader = _small(config), None
        else:
            model, loader = _created(config)
        patch_embedding(model, config.name)
        replace_heads(model, classes)
    if config.weights == PRETRAINED and loader is not None:
        timm_models.check_at_hand(loader, config.name)
    return _described(model, config.name)


def _described(
    model: nn.Module, name: str, source: str = RANDOM, notes: tuple[str, ...] = ()
) -> Backbone:
    """Freezes a model and returns it as a `Backbone`, with the sizes of its input images."""
    found = patch_embedding(model, name)
    model.eval().requires_grad_(requires_grad=False)
    height, width = found.img_size
    if min(height, width) < found.patch_size[0]:
        raise UserError(
            f"model.image_size {height}x{width} is smaller than one patch of {name}; expected at "
            f"least {found.patch_size[0]} pixels for each side"
        )
    return Backbone(
        model=model,
        image_shape=(found.proj.in_channels, height, width),
        patch_size=found.patch_size[0],
        built=dict(model.named_parameters()),
        source=source,
        notes=notes,
    )


def _bundled(config: ModelConfig) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Builds a model whose weights are part of this package."""
    model = _small(config)
    if config.weights == RANDOM:
        return model, RANDOM, ()
    own = config.weights == PRETRAINED
    path = WEIGHTS_FOLDER / f"{config.name}.safetensors" if own else _existing_file(config.weights)
    notes = fit(model, read_weights(path), name=config.name, where=str(path))
    return model, "bundled" if own else str(path), notes


def _small(config: ModelConfig) -> nn.Module:
    """Builds the model for the bundled weights, with random numbers in its tensors.

    Raises:
        UserError: When the settings demand an image size or patch size that this model does not
            have.
    """
    from timm.models.vision_transformer import VisionTransformer

    shape = dict(BUNDLED[config.name])
    given = {"img_size": image_size(config), "patch_size": config.patch_size}
    for name, size in given.items():
        side = shape[name]
        if size not in (None, side, (side, side)):
            raise UserError(
                f"model {config.name} supports only {name} {side}, got {size}; choose a timm model "
                "for other sizes, for example --model vit_tiny_patch16_224"
            )
    model: nn.Module = VisionTransformer(**shape, num_classes=0)
    return model


def _from_timm(config: ModelConfig) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Builds a timm ViT for the configured sizes and loads its weights."""
    path = None if config.weights in (PRETRAINED, RANDOM) else _existing_file(config.weights)
    model, loader = _created(config)
    patch_embedding(model, config.name)
    if config.weights == RANDOM:
        return model, RANDOM, ()
    if path is None:
        source, tensors = timm_models.published(loader, config.name)
    else:
        source, tensors = str(path), read_weights(path)
    notes = fit(
        model,
        tensors,
        name=config.name,
        where=source,
        convert=loader.convert,
        new_grid=config.image_size is not None or config.patch_size is not None,
        new_patches=config.patch_size is not None,
        pooling=not loader.strict,
    )
    tag = str(loader.config.get("tag") or "")
    named = f"{loader.config.get('architecture')}.{tag} of " if tag and path is None else ""
    return model, f"{named}{source}", notes


def _created(config: ModelConfig) -> tuple[nn.Module, timm_models.Loader]:
    """Builds a timm model for the configured sizes, with random weights.

    Raises:
        UserError: When timm does not know the model, or the sizes do not fit the model.
    """
    sizes = {"img_size": image_size(config), "patch_size": config.patch_size}
    arguments: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    name = timm_models.resolved_name(config.name, BUNDLED)
    _check_patch_size(config)
    return timm_models.create(name, arguments, config.name)


def _check_patch_size(config: ModelConfig) -> None:
    from fl_vitlora.encryption.image_blocks import grid

    size = image_size(config)
    if size is not None and config.patch_size is not None:
        grid(*size, config.patch_size)


def _existing_file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"model.weights {path!r}: expected 'pretrained', 'random', or an existing file"
        )
    return file


def patch_embedding(model: nn.Module, name: str) -> Any:
    """Returns the patch embedding of a model, if it can read encrypted images.

    The patch embedding must read every patch of pixels separately and once, and attention must
    follow. If patches overlapped, or if several convolutions came first, the model would mix the
    ciphertext of neighbouring blocks.

    Raises:
        UserError: When the model does not begin with a patch embedding of separate patches, or has
            no attention after it.
    """
    found = getattr(model, "patch_embed", None)
    if not _is_plain(found) or not _attends(model):
        raise UserError(
            f"model {name} has no patch embedding of non-overlapping patches with attention after "
            "it, so it cannot read encrypted images; choose a plain ViT, for example "
            "vit_base_patch16_224"
        )
    return found


def _is_plain(found: Any) -> bool:
    """Returns True if a patch embedding is a single convolution of adjacent square patches."""
    projection = getattr(found, "proj", None)
    if not isinstance(projection, nn.Conv2d) or getattr(found, "img_size", None) is None:
        return False
    height, width = projection.kernel_size
    return (
        height == width
        and projection.stride == projection.kernel_size
        and projection.padding in ((0, 0), 0, "valid")
        and (projection.dilation, projection.groups) == ((1, 1), 1)
        and all(name.startswith(("proj.", "norm.")) for name, _ in found.named_parameters())
    )


def _attends(model: nn.Module) -> bool:
    return any("attn" in name.rpartition(".")[2] for name, _ in model.named_modules())


@torch.no_grad()
def _fold_normalization(
    convolution: nn.Conv2d, mean: float | Sequence[float], std: float | Sequence[float]
) -> None:
    """Changes a patch embedding in place, so that it takes pixels that `normalize` has scaled.

    Before the change, the patch embedding takes (q/255 - mean) / std for a pixel q. Let u in [-1,
    1] be the scaled pixel. It follows that (q/255 - mean) / std = u·(0.5 / std) + (0.5 - mean) /
    std in every channel. Therefore this function multiplies the weight by 0.5 / std. The bias grows
    by the constant (0.5 - mean) / std, multiplied by the weight and summed over a patch.
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
