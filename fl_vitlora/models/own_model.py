"""Stores a model that a Python program hands in, so that workers can build the same model.

A worker builds its model from a name. So the model is written as a folder that timm opens
(``local-dir:FOLDER``), built again from this folder, and compared with the model that was handed
in. If timm does not build exactly the same model again, the model is refused.

Letters in shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import head_parameters
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone, normalize, patch_embedding
from fl_vitlora.models.timm_folder import CONFIG, WEIGHTS, Described, describe
from fl_vitlora.models.timm_models import FOLDER
from fl_vitlora.storage.checksummed import digest_of, write_sealed
from fl_vitlora.storage.files import WriteError, make_folder, write_atomically

GIVEN_MODELS = ".given-models"  # the folder of handed-in models, beside the run folders
PLAIN = "vit_base_patch16_224"  # timm's model, built with the sizes of the handed-in ViT
NAMED = 16  # hexadecimal digits of the name of a folder
CLOSE = 1e-4  # largest difference of features, as a share of the largest feature
HALF = 0.5  # mean and standard deviation of pixels in [-1, 1]


def store_model(model: nn.Module, place: Path) -> str:
    """Writes a model into a folder that is named after its content, and checks it.

    The head is not used, because a run makes a new head for its classes.

    Args:
        model: A model that ``timm.create_model`` has made, or a `VisionTransformer` of timm. This
            function does not change the model.
        place: The folder in which the folder of the model is made.

    Returns:
        The name of the model for the setting `model.name`.

    Raises:
        UserError: If timm cannot build the model again, or the model cannot read encrypted images.
    """
    own = copy.deepcopy(model).cpu().float().eval()
    described = _described(own)
    config = _config(own, described)
    tensors = {name: tensor.contiguous() for name, tensor in own.state_dict().items()}
    if strange := [name for name, t in tensors.items() if not t.isfinite().all()]:
        raise UserError(f"model: {strange[0]} holds NaN or infinity")
    folder = place.absolute() / digest_of(tensors, {CONFIG: json.dumps(config)})[:NAMED]
    try:
        make_folder(folder)
        write_sealed(folder / WEIGHTS, tensors, {"format": "pt"})
        write_atomically(folder / CONFIG, json.dumps(config, indent=2))
    except WriteError as error:
        raise UserError(f"model: {error}") from None
    _expect_same(own, config, f"{FOLDER}{folder}")
    return f"{FOLDER}{folder}"


def _described(model: nn.Module) -> Described:
    """Returns what timm must know to build a model again.

    Raises:
        UserError: If timm did not make the model, or if the model cannot read encrypted images.
    """
    from timm.models.vision_transformer import VisionTransformer

    kind = type(model)
    what = f"model {kind.__module__}.{kind.__qualname__}"
    known = getattr(model, "pretrained_cfg", None) or {}
    if kind is not VisionTransformer and not _is_of_timm(known.get("architecture")):
        raise UserError(
            f"{what}: expected a model of timm.create_model or a VisionTransformer of timm, whose "
            "description can be stored, so that workers build it again"
        )
    found = patch_embedding(model, kind.__qualname__)
    height, width = found.img_size
    whole = Backbone(
        model=model,
        image_shape=(found.proj.in_channels, height, width),
        patch_size=found.patch_size[0],
    )
    if known.get("architecture"):
        return describe(whole, what)
    return Described(architecture=PLAIN, arguments=_arguments(model, whole))


def _is_of_timm(architecture: str | None) -> bool:
    """Returns True if an architecture belongs to timm itself, so that every worker knows it."""
    import timm

    if not architecture or not timm.is_model(architecture):
        return False
    return str(timm.model_entrypoint(architecture).__module__).startswith("timm.")


def _arguments(model: Any, whole: Backbone) -> dict[str, Any]:
    """Returns the arguments of a plain `VisionTransformer` that its attributes show."""
    block = model.blocks[0]
    return {
        "img_size": list(whole.image_shape[1:]),
        "patch_size": whole.patch_size,
        "in_chans": whole.image_shape[0],
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "init_values": None if isinstance(block.ls1, nn.Identity) else 1e-5,
        "class_token": model.cls_token is not None,
        "reg_tokens": model.num_reg_tokens,
        "no_embed_class": model.no_embed_class,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "global_pool": model.global_pool,
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
    }


def _config(model: Any, described: Described) -> dict[str, Any]:
    """Returns the content of config.json, as timm writes it for the hub."""
    known: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    height, width = described.arguments["img_size"]
    channels = model.patch_embed.proj.in_channels
    return {
        "architecture": described.architecture,
        "num_classes": model.num_classes,
        "model_args": dict(described.arguments),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": True,
            "mean": _listed(known.get("mean", HALF), channels),
            "std": _listed(known.get("std", HALF), channels),
            "num_classes": model.num_classes,
            "pool_size": None,
            "first_conv": known.get("first_conv", "patch_embed.proj"),
            "classifier": known.get("classifier", "head"),
        },
    }


def _listed(value: Any, channels: int) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list | tuple) else [value] * channels


@torch.no_grad()
def _expect_same(own: Any, config: Mapping[str, Any], name: str) -> None:
    """Checks that a run builds the model that was handed in.

    Raises:
        UserError: If a layer, a tensor or a feature differs.
    """
    built: Any = backbone.build(ModelConfig(name=name), classes=2, seed=0)
    layers, others = _layers(own), _layers(built.model)
    for layer in dict.fromkeys([*layers, *others]):
        if layers.get(layer) != others.get(layer):
            raise UserError(
                f"model: timm builds another model from its description; {layer or 'the model'} "
                f"is {layers.get(layer, 'missing')} and becomes {others.get(layer, 'missing')}"
            )
    channels, height, width = built.image_shape
    pixels = torch.arange(2 * channels * height * width).mul(37).remainder(256).to(torch.uint8)
    pixels = pixels.view(2, channels, height, width)
    known = config["pretrained_cfg"]
    mean, std = (torch.tensor(known[part]).view(-1, 1, 1) for part in ("mean", "std"))
    expected = _features(own, (pixels / 255 - mean) / std)
    found = _features(built.model, normalize(pixels))
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-3))
    if not difference <= CLOSE:
        raise UserError(
            f"model: timm builds another model from its description; its features differ by "
            f"{difference:.1e} of the largest one"
        )


def _layers(model: nn.Module) -> dict[str, str]:
    """Returns the type and the parameters of each layer by name.

    Heads are left out, and so is the patch embedding, to which `backbone.build` may add a bias.
    """
    heads = {name.rpartition(".")[0] for name in head_parameters(model)}
    return {
        name: f"{type(layer).__name__}({layer.extra_repr()})"
        for name, layer in model.named_modules()
        if name not in heads and not name.startswith("head") and name != "patch_embed.proj"
    }


def _features(model: Any, images: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features
