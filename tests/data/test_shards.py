"""Shards survive the disk bit by bit; what is no shard is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fl_vitlora.data.shards import (
    Shard,
    client_shard,
    client_test_shard,
    open_shard,
    read_shard,
    shard_metadata,
    write_shard,
)
from fl_vitlora.errors import UserError
from fl_vitlora.sealed import write_sealed

LABELS = torch.tensor([3, 1, 4, 1, 5])


def test_what_is_written_is_read(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {"client": "0"})
    shard = open_shard(tmp_path / "shard")
    assert torch.equal(shard.images, images)
    assert torch.equal(shard.labels, LABELS)
    assert len(shard) == 5


def test_metadata_are_read_as_they_were_written(tmp_path: Path, images: Tensor):
    for metadata in ({"party": "client 0", "key_id": "0123"}, {}):
        write_shard(tmp_path / "shard", Shard(images, LABELS), metadata)
        assert shard_metadata(tmp_path / "shard") == metadata
        assert read_shard(tmp_path / "shard")[1] == metadata
    (tmp_path / "shard").write_bytes(b"no shard")
    with pytest.raises(UserError, match=r"shard cannot be read"):
        shard_metadata(tmp_path / "shard")


def test_names_of_shards_differ():
    names = {name(client) for name in (client_shard, client_test_shard) for client in range(20)}
    assert len(names) == 40


def test_views_and_empty_shards_are_written_too(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "a", Shard(images.flip(-1).transpose(2, 3), LABELS), {})
    assert torch.equal(open_shard(tmp_path / "a").images, images.flip(-1).transpose(2, 3))
    write_shard(tmp_path / "b", Shard(images[:0], LABELS[:0]), {})
    assert len(open_shard(tmp_path / "b")) == 0


@pytest.mark.parametrize("durable", [True, False])
def test_no_half_written_file_is_left(tmp_path: Path, images: Tensor, *, durable: bool):
    for shard in (Shard(images[:2], LABELS[:2]), Shard(images, LABELS)):  # the second replaces
        write_shard(tmp_path / "shard", shard, {}, durable=durable)
        assert torch.equal(open_shard(tmp_path / "shard").images, shard.images)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, images: Tensor, cut: int):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {})
    (tmp_path / "shard").write_bytes((tmp_path / "shard").read_bytes()[:cut])
    with pytest.raises(UserError, match=f"{tmp_path / 'shard'} cannot be read"):
        open_shard(tmp_path / "shard")


@pytest.mark.parametrize("place", ["images", "metadata"])
def test_one_flipped_bit_is_refused(tmp_path: Path, images: Tensor, place: str):
    """A pixel that changed trains a model; a party that changed decrypts to noise at a rotation."""
    path = tmp_path / "shard"
    write_shard(path, Shard(images, LABELS), {"party": "client 7"})
    content = bytearray(path.read_bytes())
    content[-100 if place == "images" else content.index(b"client 7") + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        open_shard(path)


def test_a_shard_of_an_older_version_is_refused(tmp_path: Path, images: Tensor):
    save_file({"images": images, "labels": LABELS}, tmp_path / "shard", {"party": "client 0"})
    with pytest.raises(UserError, match="has no digest, which older versions did not write"):
        open_shard(tmp_path / "shard")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"client-00007\.safetensors is missing"):
        open_shard(tmp_path / client_shard(7))


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, dtype=torch.int64)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(2)},
        {"images": torch.tensor(3, dtype=torch.uint8), "labels": torch.tensor(2)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(3).long()},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)},
        {"weights": torch.zeros(2)},
    ],
    ids=["floats", "float labels", "no batch", "labels too many", "no labels", "a model"],
)
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, tensors: dict[str, Tensor]):
    write_sealed(tmp_path / "shard", tensors, {})
    with pytest.raises(UserError, match=f"{tmp_path / 'shard'} is no shard"):
        open_shard(tmp_path / "shard")
