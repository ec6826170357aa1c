"""What owners encrypt: every image through its client's sensor, and copies of training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_vitlora.config import Config, load
from fl_vitlora.data import owner
from fl_vitlora.data.reencryption import encrypt_anew
from fl_vitlora.data.sensors import seen_by, sensor_of
from fl_vitlora.data.shards import (
    TEST_SHARD,
    VALIDATION_SHARD,
    client_shard,
    read_shard,
)
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.experiment.preparation import OwnedImages, prepare_images, write_shards
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.rng import derive_seed

COPIED = {"data.copies": 3, "data.augment": ["flip", "crop"]}
SKEWED = {"data.feature_skew": 0.8}
HELD = {"data.validation_fraction": 0.2}
BY = pytest.mark.parametrize("by", ["central", "clients"])


def configured(tmp_path: Path, **changed: Any) -> Config:
    given = {"clients": 2, "data.limit": 60, "encryption.at_rest": "none", "seed": 5}
    ring = {"encryption.key_file": str(tmp_path / "owner.key")}
    return load(None, {**given, **ring, **changed})


def holder_of(config: Config) -> KeyHolder:
    secret = open_or_create_ring(Path(config.encryption.key_file)).current
    return owner.key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret)


def written(tmp_path: Path, name: str, **changed: Any) -> tuple[OwnedImages, Path, KeyHolder]:
    """Writes the shards of an experiment; returns its images, the folder, and the holder."""
    config = configured(tmp_path, **changed, out=str(tmp_path / name))
    images, holder = prepare_images(config), holder_of(config)
    folder = RunFolder.create(config)
    write_shards(config, images, holder, folder, None)
    folder.release()
    return images, folder.shards, holder


def opened(shards: Path, name: str, holder: KeyHolder) -> tuple[Tensor, list[int]]:
    """Returns the plain images and the labels of a shard."""
    shard, metadata = read_shard(shards / name)
    party, part = metadata["party"], metadata["part"]
    return holder.decrypt(shard.images, party, part), shard.labels.tolist()  # type: ignore[arg-type]


@BY
@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
def test_a_shard_with_copies_begins_with_the_shard_without(
    tmp_path: Path, scope: str, by: str
) -> None:
    """The ciphertext of the images is the same, too, and a copy with its own key has another."""
    given = {"encryption.scope": scope, "evaluation.by": by, **HELD}
    images, plain, holder = written(tmp_path, "plain", **given)
    _, copied, _ = written(tmp_path, "copied", **given, **COPIED)
    for client, part in enumerate(images.parts):
        name, count = client_shard(client), len(part)
        one, several = read_shard(plain / name)[0], read_shard(copied / name)[0]
        assert len(several) == 3 * len(one) == 3 * count
        assert torch.equal(several.images[:count], one.images)
        assert several.labels.tolist() == 3 * one.labels.tolist()
        pixels, _ = opened(copied, name, holder)
        assert torch.equal(pixels[:count], images.train.read(part, 16, 16))
        assert not torch.equal(pixels[count : 2 * count], pixels[:count])
    others = {path.name for path in plain.iterdir()} - {client_shard(0), client_shard(1)}
    assert len(others) == (2 if by == "central" else 4)
    for name in others:  # images for validation and tests have no copies
        assert torch.equal(read_shard(plain / name)[0].images, read_shard(copied / name)[0].images)


@BY
def test_clients_see_all_their_images_through_their_sensors(tmp_path: Path, by: str) -> None:
    given = {"evaluation.by": by, **HELD}
    images, shards, holder = written(tmp_path, "run", **given, **SKEWED)

    def seen(client: int, part: str, positions: Any) -> Tensor:
        source = images.test if part == "test" else images.train
        word = "test" if part == "test" else "train"
        seeds = [derive_seed(5, "sensor noise", word, place) for place in positions.tolist()]
        sensor = sensor_of(client, skew=0.8, seed=5)
        return seen_by(sensor, source.read(positions, 16, 16), seeds)

    for client in range(2):
        expected = {client_shard(client): ("train", images.parts[client])}
        if by == "clients":
            expected[client_shard(client, "validation")] = ("validation", images.validation[client])
            expected[client_shard(client, "test")] = ("test", images.test_parts[client])
        for name, (part, positions) in expected.items():
            pixels, _ = opened(shards, name, holder)
            assert torch.equal(pixels, seen(client, part, positions))
            assert not torch.equal(pixels, seen(1 - client, part, positions))
    if by == "central":  # common images have no sensor
        test, _ = opened(shards, TEST_SHARD, holder)
        assert torch.equal(test, images.test.read(np.arange(len(images.test)), 16, 16))
        held, _ = opened(shards, VALIDATION_SHARD, holder)
        assert torch.equal(held, images.train.read(images.validation[0], 16, 16))


def test_the_same_settings_write_the_same_shards(tmp_path: Path) -> None:
    _, first, _ = written(tmp_path, "first", **SKEWED, **COPIED)
    _, second, _ = written(tmp_path, "second", **SKEWED, **COPIED)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("scope", ["shared", "image"])
def test_a_rotated_key_keeps_the_copies(tmp_path: Path, scope: str) -> None:
    _, shards, holder = written(tmp_path, "run", **{"encryption.scope": scope}, **COPIED)
    before = {path: opened(shards, path.name, holder) for path in owner.find_shards(shards)}
    ring = open_or_create_ring(tmp_path / "owner.key").rotated()
    assert encrypt_anew(list(before), ring) == list(before)
    new = owner.key_holder(
        configured(tmp_path, **{"encryption.scope": scope}),
        patch_size=4,
        image_shape=(3, 16, 16),
        secret=ring.current,
    )
    for path, (pixels, labels) in before.items():
        again, same = opened(shards, path.name, new)
        assert torch.equal(again, pixels)
        assert labels == same


def test_the_user_is_told(tmp_path: Path) -> None:
    told = prepare_images(configured(tmp_path, **SKEWED, **COPIED)).summary
    assert "each client has its own sensor (data.feature_skew 0.8)" in told
    assert told.endswith("each training image is encrypted as 3 copies (flip and crop)")
    assert "sensor" not in prepare_images(configured(tmp_path)).summary
