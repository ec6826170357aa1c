"""Writes a model as a folder that timm opens: ``timm.create_model("local-dir:PATH")``.

Letters in shapes: B images, C channels, H × W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import BUNDLED, Backbone, normalize
from fl_vitlora.storage.checksummed import write_sealed
from fl_vitlora.storage.files import write_atomically

BUNDLED_AS = "vit_base_patch16_224"  # timm's model that is built with a bundled model's sizes
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CROP_MODES = {"squash": "squash", "crop": "center", "pad": "border"}  # timm's names
CLOSE = 1e-4  # largest difference of logits, as a share of the largest logit


@dataclass(frozen=True, kw_only=True)
class Described:
    """The description with which timm can build a model again.

    Attributes:
        architecture: The name of the model in timm.
        arguments: The arguments with which timm builds the model.
    """

    architecture: str
    arguments: Mapping[str, Any]


def describe(backbone: Backbone, name: str) -> Described:
    """Returns the description with which timm can build the plain model of a backbone.

    Args:
        backbone: The model, whose sizes are used.
        name: The name of the model in the settings.

    Raises:
        UserError: If timm does not know how the model was built.
    """
    sizes: dict[str, Any] = {
        "img_size": list(backbone.image_shape[1:]),
        "patch_size": backbone.patch_size,
    }
    if name in BUNDLED:
        return Described(architecture=BUNDLED_AS, arguments={**BUNDLED[name], **sizes})
    settings: Mapping[str, Any] = getattr(backbone.model, "pretrained_cfg", None) or {}
    architecture = settings.get("architecture")
    if not architecture:
        raise UserError(f"model {name} cannot be exported: timm does not name its architecture")
    own = {n: v for n, v in getattr(backbone.model, "_model_args", {}).items() if _is_plain(v)}
    own.pop("num_classes", None)
    return Described(architecture=architecture, arguments={**own, **sizes})


def write_timm_folder(
    folder: Path, plain: Backbone, described: Described, class_names: Sequence[str], fit: str
) -> None:
    """Writes the weights and the description of a plain model.

    Args:
        folder: The folder, which must exist and be empty.
        plain: The model, without tensors that timm does not know.
        described: The result of `describe`.
        class_names: The names of the K classes, in the order of the head's outputs.
        fit: How images are fitted to the model's size: squash, crop or pad.
    """
    write_sealed(folder / WEIGHTS, dict(plain.model.state_dict()), {"format": "pt"})
    config = _config(plain, described, class_names, CROP_MODES[fit])
    write_atomically(folder / CONFIG, json.dumps(config, indent=2))


def expect_same_logits(ours: Backbone, other: nn.Module, what: str, number: int = 2) -> None:
    """Checks that another model has the logits of a model, for made-up images.

    Args:
        ours: The model that computes the expected logits.
        other: The other model, which reads the same images.
        what: The name of the other model, for the error.
        number: The number of images, which both models read together.

    Raises:
        UserError: If a logit differs by more than rounding.
    """
    channels, height, width = ours.image_shape
    pixels = torch.arange(number * channels * height * width).mul(37).remainder(256)
    images = normalize(pixels.to(torch.uint8).view(number, channels, height, width))
    with torch.no_grad():
        expected, found = ours.model(images), other.eval()(images)
    if expected.shape != found.shape:
        raise UserError(f"{what}: expected logits of shape {tuple(expected.shape)}")
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-3))
    if not difference <= CLOSE:
        raise UserError(
            f"{what}: the logits differ from those of the run by {difference:.1e} of the largest "
            "logit, so the model cannot be exported in this form"
        )


def _config(
    plain: Backbone, described: Described, class_names: Sequence[str], crop_mode: str
) -> dict[str, Any]:
    """Returns the content of config.json, in the form that timm writes for the hub."""
    settings: Mapping[str, Any] = getattr(plain.model, "pretrained_cfg", None) or {}
    return {
        "architecture": described.architecture,
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "model_args": dict(described.arguments),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": list(plain.image_shape),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": crop_mode,
            "mean": [0.5] * plain.image_shape[0],
            "std": [0.5] * plain.image_shape[0],
            "num_classes": len(class_names),
            "pool_size": None,
            "first_conv": settings.get("first_conv", "patch_embed.proj"),
            "classifier": settings.get("classifier", "head"),
        },
    }


def open_timm_folder(folder: Path) -> nn.Module:
    """Returns the model that timm builds from the files of a folder.

    Raises:
        UserError: If timm cannot build the model.
    """
    import timm

    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    except Exception as error:
        raise UserError(
            f"the model cannot be exported: timm cannot build it from {folder}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return model


def _is_plain(value: Any) -> bool:
    """Returns True if JSON can store a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
