"""A model that a program hands in is stored, built again the same, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.own_model import store_model

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
TINY: dict[str, Any] = {"img_size": 32, "depth": 2}
OWN: dict[str, Any] = {
    "a plain ViT": lambda: VisionTransformer(**SMALL, num_classes=5),
    "registers and a mean": lambda: VisionTransformer(
        **SMALL, reg_tokens=2, class_token=False, global_pool="avg", init_values=1e-5
    ),
    "of timm, with a mean of its own": lambda: timm.create_model(
        "vit_base_patch16_clip_224", **TINY, embed_dim=32, num_heads=2
    ),
    "of timm, with two heads": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **TINY),
    "of timm, in half precision": lambda: timm.create_model("vit_tiny_patch16_224", **TINY).half(),
}


@pytest.mark.parametrize("name", OWN)
def test_a_run_builds_the_model_that_was_handed_in(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OWN[name]()
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    stored = store_model(model, tmp_path)
    assert store_model(model, tmp_path) == stored
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    built: Any = backbone.build(ModelConfig(name=stored), classes=3, seed=0)
    pixels = torch.randint(0, 256, (2, *built.image_shape), dtype=torch.uint8)
    known = getattr(model, "pretrained_cfg", None) or {"mean": [0.5], "std": [0.5]}
    mean, std = (torch.tensor(known[part]).view(-1, 1, 1) for part in ("mean", "std"))
    own = model.float().eval()
    with torch.no_grad():
        expected = own.forward_features((pixels / 255 - mean) / std)
        found = built.model.forward_features(normalize(pixels))
    assert torch.allclose(found, expected, atol=1e-4)
    folder = Path(stored.removeprefix("local-dir:"))
    assert folder.parent == tmp_path
    assert json.loads((folder / "config.json").read_text())["architecture"].startswith(("vit", "d"))


class Mine(VisionTransformer):  # type: ignore[misc]
    """A class that no worker knows."""


def silent() -> Any:
    """Returns a model whose layers look as usual, but one of them computes something else."""
    model: Any = VisionTransformer(**SMALL)
    model.blocks[0].mlp.forward = torch.zeros_like
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "no model of timm": (lambda: nn.Linear(2, 2), "expected a model of timm.create_model or a Vi"),
    "a class of one's own": (
        lambda: Mine(**SMALL),
        "test_own_model.Mine: expected a model of",
    ),
    "convolutions": (lambda: timm.create_model("resnet18"), "has no patch embedding of non-over"),
    "another activation": (
        lambda: VisionTransformer(**SMALL, act_layer=nn.ReLU),
        r"blocks.0.mlp.act is ReLU\(\) and becomes GELU",
    ),
    "layers are dropped": (
        lambda: VisionTransformer(**SMALL, drop_path_rate=0.1),
        "blocks.1.drop_path1 is DropPath.* and becomes Identity",
    ),
    "a layer is replaced": (silent, "its features differ by"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_timm_does_not_build_again_is_refused(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, expected = REFUSED[what]
    with pytest.raises(UserError, match=expected) as error:
        store_model(make(), tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = VisionTransformer(**SMALL)
    model.cls_token.data[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="model: cls_token holds NaN or infinity"):
        store_model(model, tmp_path)
