"""Shards survive the disk bit by bit; what is no shard is refused; the owner writes ciphertext."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data import owner, sources
from fl_vitlora.data.shards import TEST_SHARD, Shard, client_shard, open_shard, write_shard
from fl_vitlora.encryption.cipher import STEPS, Cipher
from fl_vitlora.errors import UserError

LABELS = torch.tensor([3, 1, 4, 1, 5])


def test_what_is_written_is_read(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {"client": "0"})
    shard = open_shard(tmp_path / "shard")
    assert torch.equal(shard.images, images)
    assert torch.equal(shard.labels, LABELS)
    assert len(shard) == 5


def test_views_and_empty_shards_are_written_too(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "a", Shard(images.flip(-1).transpose(2, 3), LABELS), {})
    assert torch.equal(open_shard(tmp_path / "a").images, images.flip(-1).transpose(2, 3))
    write_shard(tmp_path / "b", Shard(images[:0], LABELS[:0]), {})
    assert len(open_shard(tmp_path / "b")) == 0


def test_no_half_written_file_is_left(tmp_path: Path, images: Tensor):
    for _ in range(2):  # the second replaces the first
        write_shard(tmp_path / "shard", Shard(images, LABELS), {})
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, images: Tensor, cut: int):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {})
    (tmp_path / "shard").write_bytes((tmp_path / "shard").read_bytes()[:cut])
    with pytest.raises(UserError, match=f"shard {tmp_path / 'shard'} cannot be read"):
        open_shard(tmp_path / "shard")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"client-00007\.safetensors cannot be read"):
        open_shard(tmp_path / client_shard(7))


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(3)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)},
        {"weights": torch.zeros(2)},
    ],
    ids=["floats", "labels too many", "no labels", "a model"],
)
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, tensors: dict[str, Tensor]):
    save_file(tensors, tmp_path / "shard")
    with pytest.raises(UserError, match=f"shard {tmp_path / 'shard'}"):
        open_shard(tmp_path / "shard")


def test_the_owner_writes_ciphertext_and_labels_and_nothing_else(tmp_path: Path):
    train, test = sources.load(DataConfig(limit=30))
    cipher = Cipher(steps=tuple(STEPS), block_size=4, image_shape=(3, 16, 16))
    key = cipher.key(bytes(32), "test")
    parts = [np.arange(0, 20), np.arange(20, 30)]
    owner.write_encrypted_shards(
        tmp_path, train=train, test=test, parts=parts, cipher=cipher, key=key, metadata={"a": "b"}
    )
    names = {client_shard(0), client_shard(1), TEST_SHARD}
    assert {path.name for path in tmp_path.iterdir()} == names
    sources_of = {client_shard(0): (train, parts[0]), client_shard(1): (train, parts[1])}
    for name, (images, part) in {**sources_of, TEST_SHARD: (test, np.arange(30))}.items():
        shard, plain = open_shard(tmp_path / name), images.read(part, 16)
        assert not torch.equal(shard.images, plain)
        assert torch.equal(cipher.decrypt(shard.images, key), plain)
        assert shard.labels.tolist() == images.labels[part].tolist()
        with safe_open(tmp_path / name, framework="pt") as file:
            assert set(file.keys()) == {"images", "labels"}
            assert set(file.metadata()) <= {"a", "client"}
