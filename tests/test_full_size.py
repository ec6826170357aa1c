"""The path of configs/cifar10_vit_base.yaml on ViT-B/16 itself, with local images and weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from fl_vitlora.config import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LANES = load(str(ROOT / "configs" / "thousand_fold.yaml")).compression
THOUSAND_FOLD = {
    "compression.uplink": LANES.uplink.codec,
    "compression.downlink": LANES.downlink.codec,
    "training.epochs": "2",  # the first step moves the head alone: it begins at zero
    "training.warmup_rounds": "0",
    "training.schedule": "constant",
}


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Four training and four test images of two classes, 32 × 32, as CIFAR's are."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        split, name = ("train", "test")[number // 4], ("cat", "dog")[number % 2]
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("lanes", "rounds", "least", "most"),
    [({}, 1, 114, 116), (THOUSAND_FOLD, 2, 1000, 10_000)],
    ids=["as it is", "coded"],
)
def test_vit_base_trains_on_two_clients(
    *,
    lanes: dict[str, str],
    rounds: int,
    least: float,
    most: float,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    weights = tmp_path / "vit_base.safetensors"
    save_file(timm.create_model("vit_base_patch16_224").state_dict(), weights)
    settings = {
        "data.partition": "iid",
        "model.weights": str(weights),
        "encryption.key_file": str(tmp_path / "owner.key"),
        "engine.device": "cpu",
        **lanes,
    }
    command = [sys.executable, "simulate.py", "--config", "configs/cifar10_vit_base.yaml"]
    command += ["--dataset", str(image_folder), "--clients", "2", "--rounds", str(rounds)]
    command += ["--out", str(tmp_path / "run")]
    for path, value in settings.items():
        command += ["--set", f"{path}={value}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    two_classes = 745_738 - 8 * 769  # the figure of ten classes less eight rows of the head
    assert result["trainable_parameters"] == two_classes
    assert result["total_parameters"] == 85_806_346 - 8 * 769
    assert least < result["communication"]["saving"] < most
