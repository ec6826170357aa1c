"""The model of a finished run as the start of another: exact, by name, and refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import plain_heads
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.own_model import store_model
from fl_vitlora.models.start import Start, start_of
from fl_vitlora.storage.checksummed import read_sealed, write_sealed
from tests.conftest import random_vit

NAMES = ("ant", "bee", "cat")


def start(model: Any, names: tuple[str, ...] = NAMES) -> Start:
    plain_heads(model)
    return Start(
        run="runs/old",
        digest="abc",
        model="vit_letters_16",
        reads="plain images",
        holds_key=False,
        reveals_part_of_key=False,
        class_names=names,
        tensors={name: tensor.contiguous() for name, tensor in model.state_dict().items()},
    )


@torch.no_grad()
def logits(built: Any, images: Tensor) -> Tensor:
    found: Tensor = built.model(normalize(images))
    return found


def test_the_model_is_loaded_bit_for_bit(tmp_path: Path, images: Tensor) -> None:
    old = random_vit(classes=3)
    path = start(old.model).write(tmp_path)
    built = backbone.build(ModelConfig(weights=str(path)), NAMES, seed=5)
    assert torch.equal(logits(built, images), logits(old, images))
    assert "checksum abc" in built.source
    assert built.notes == (
        "the model starts from the run runs/old (checksum abc), for plain images; the head keeps 3 "
        "of 3 classes by their names",
    )
    assert start(old.model).write(tmp_path) == path


@pytest.mark.parametrize("reads", ["plain images", "ciphertext under the key abc"])
def test_a_file_of_before_counts_as_one_with_a_key_if_it_reads_ciphertext(
    reads: str, tmp_path: Path
) -> None:
    path = replace(start(random_vit(classes=3).model), reads=reads).write(tmp_path)
    tensors, metadata = read_sealed(path)
    described = json.loads(metadata["start"])
    del described["holds_key"], described["reveals_part_of_key"]
    write_sealed(path, tensors, {"start": json.dumps(described)})
    found = start_of(ModelConfig(weights=str(path)))
    assert found is not None
    assert found.holds_key == found.reveals_part_of_key == (reads != "plain images")


def test_rows_of_the_head_are_matched_by_name(tmp_path: Path, images: Tensor) -> None:
    old = random_vit(classes=3)
    path = start(old.model).write(tmp_path)
    built = backbone.build(ModelConfig(weights=str(path)), ("dog", "cat", "ant"), seed=5)
    new, before = logits(built, images), logits(old, images)
    assert torch.equal(new[:, 0], torch.zeros(len(images)))
    assert torch.allclose(new[:, 1:], before[:, [2, 0]], atol=1e-6)
    assert built.notes[0].endswith("keeps 2 of 3 classes by their names; the others start at zero")
    (numbered,) = backbone.build(ModelConfig(weights=str(path)), 4, seed=5).notes
    assert "head" not in numbered


def test_pixels_are_not_scaled_twice_by_a_model_with_a_mean_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = timm.create_model(
        "vit_base_patch16_clip_224", img_size=32, depth=2, embed_dim=32, num_heads=2
    )
    name = store_model(clip, tmp_path)
    first: Any = backbone.build(ModelConfig(name=name), 3, seed=0)
    assert first.model.patch_embed.proj.bias is not None  # timm's model has none
    first.model.head.weight.data.normal_()
    path = start(first.model).write(tmp_path)
    again = backbone.build(ModelConfig(name=name, weights=str(path)), NAMES, seed=1)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(logits(again, images), logits(first, images))


def test_another_architecture_is_refused_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    path = str(start(random_vit(classes=3).model).write(tmp_path))
    small = store_model(
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2), tmp_path / "own"
    )
    expected = r"model.init_from runs/old: blocks.0.attn.proj.bias has the shape \(96,\) in that"
    with pytest.raises(UserError, match=expected) as error:
        backbone.build(ModelConfig(name=small, weights=path), NAMES, seed=0)
    assert "model.name=vit_letters_16" in str(error.value)


def test_a_run_that_was_not_made_into_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.init_from runs/x: expected model\.weights with"):
        start_of(ModelConfig(init_from="runs/x"))
    assert start_of(ModelConfig()) is None
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no such format")
    assert start_of(ModelConfig(weights=str(other))) is None
