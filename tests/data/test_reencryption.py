"""After a rotation, all shards are encrypted under the current key, or no file is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.data.reencryption import encrypt_anew
from fl_vitlora.data.shards import (
    TEST_SHARD,
    open_shard,
    shard_metadata,
    write_shard,
)
from fl_vitlora.data.sources import Images
from fl_vitlora.encryption.keys import KeyRing, key_id, open_or_create_ring
from fl_vitlora.errors import UserError
from tests.data.digit_shards import holder_of, write


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return open_or_create_ring(tmp_path / "keys" / "owner.key")


@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC", "LE"])
def test_after_a_rotation_shards_are_encrypted_anew(
    tmp_path: Path, digits: tuple[Images, Images], ring: KeyRing, scope: str, steps: str
):
    given_settings: dict[str, Any] = {
        "scope": scope,
        "steps": steps,
        "fixed_blocks": 2,
        "fixed_entries": 1,
    }
    holder = holder_of(ring.current, **given_settings)
    content = write(tmp_path, digits, holder, apart=True)
    paths = [tmp_path / name for name in content]
    before = {path: open_shard(path) for path in paths}
    described = {path: shard_metadata(path) for path in paths}
    rotated = ring.rotated()
    assert encrypt_anew(paths, rotated) == paths
    new = holder_of(rotated.current, **given_settings)
    for path, (plain, party, part) in zip(paths, content.values(), strict=True):
        shard = open_shard(path)
        assert shard_metadata(path) == described[path] | {"key_id": new.key_id}
        assert torch.equal(new.decrypt(shard.images, party, part), plain)
        assert not torch.equal(holder.decrypt(shard.images, party, part), plain)
        assert not torch.equal(shard.images, before[path].images)
        assert torch.equal(shard.labels, before[path].labels)
    contents = [path.read_bytes() for path in paths]
    assert encrypt_anew(paths, rotated) == []
    assert [path.read_bytes() for path in paths] == contents


def test_a_rotation_that_was_broken_off_is_finished_by_the_next(
    tmp_path: Path, digits: tuple[Images, Images], ring: KeyRing
):
    content = write(tmp_path, digits, holder_of(ring.current), apart=False)
    first, *others = (tmp_path / name for name in content)
    encrypt_anew([first], once := ring.rotated())
    twice = once.rotated()
    assert encrypt_anew([first, *others], twice) == [first, *others]
    for name, (plain, party, part) in content.items():
        found = holder_of(twice.current).decrypt(open_shard(tmp_path / name).images, party, part)
        assert torch.equal(found, plain)


def plain_shard(path: Path) -> None:
    shard, metadata = open_shard(path), shard_metadata(path)
    write_shard(path, shard, metadata | {"key_id": ""})


def foreign_shard(path: Path) -> None:
    write_shard(path, open_shard(path), shard_metadata(path) | {"key_id": key_id(bytes(32))})


def damaged_shard(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


def shard_of_nobody(path: Path) -> None:
    metadata = shard_metadata(path)
    del metadata["part"]
    write_shard(path, open_shard(path), metadata)


@pytest.mark.parametrize("scope", ["shared", "client", "image"])
@pytest.mark.parametrize(
    ("spoil", "expectation"),
    [
        (plain_shard, r"test\.safetensors is not encrypted"),
        (foreign_shard, "key ring .* has no key 1a009aae9b6a6aab"),
        (shard_of_nobody, r"test\.safetensors: the field part is missing in the metadata"),
        (damaged_shard, r"test\.safetensors is damaged"),
        (Path.unlink, r"test\.safetensors is missing"),
    ],
    ids=["plain", "foreign", "incomplete", "damaged", "missing"],
)
def test_what_cannot_be_encrypted_anew_is_refused_before_any_file_is_touched(
    *,
    tmp_path: Path,
    digits: tuple[Images, Images],
    ring: KeyRing,
    scope: str,
    spoil: Any,
    expectation: str,
):
    content = write(tmp_path, digits, holder_of(ring.current, scope=scope), apart=False)
    spoil(tmp_path / TEST_SHARD)
    paths = [tmp_path / name for name in content]
    before = {path: path.read_bytes() for path in paths if path.exists()}
    with pytest.raises(UserError, match=expectation) as caught:
        encrypt_anew(paths, ring.rotated())
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in paths if path.exists()} == before
