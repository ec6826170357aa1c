"""Files of features are as well protected as their shards, and old features are never returned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fl_vitlora.data.feature_files import read_features, write_features
from fl_vitlora.data.shards import Shard, write_shard
from fl_vitlora.encryption.storage_keys import PartyKey, StorageKey, StorageKeys, of_secret
from fl_vitlora.errors import UserError

PARTY, ORIGIN = "client 3", "ab" * 32
KEY = of_secret(bytes(32))
KEYS = StorageKeys(roots={KEY.name: KEY.root})
OWN = StorageKeys(parties={(KEY.name, PARTY): KEY.of_party(PARTY)})  # as a deployed node has it
FEATURES = torch.linspace(-1, 1, 30).reshape(5, 3, 2)


@pytest.fixture(params=["sealed", "in the clear"])
def shard(request: pytest.FixtureRequest, tmp_path: Path, images: Tensor) -> Path:
    key = KEY if request.param == "sealed" else None
    return written(tmp_path, images, key)


def written(folder: Path, images: Tensor, key: StorageKey | None) -> Path:
    path = folder / "shard"
    write_shard(path, Shard(images, torch.arange(5)), {"party": PARTY}, key)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keys", [KEYS, OWN])
def test_what_is_written_is_read(
    shard: Path, tmp_path: Path, dtype: torch.dtype, keys: StorageKeys
):
    features = FEATURES.to(dtype)
    write_features(tmp_path / "a", features, ORIGIN, shard, keys)
    found = read_features(tmp_path / "a", ORIGIN, shard, keys)
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, features)
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_features_of_another_origin_are_not_returned(shard: Path, tmp_path: Path):
    write_features(tmp_path / "a", FEATURES, ORIGIN, shard, KEYS)
    assert read_features(tmp_path / "a", "cd" * 32, shard, KEYS) is None


@pytest.mark.parametrize("keep", [0, 9, 200, -1])
def test_a_missing_or_damaged_file_has_no_features(shard: Path, tmp_path: Path, keep: int):
    path = tmp_path / "a"
    assert read_features(path, ORIGIN, shard, KEYS) is None
    write_features(path, FEATURES, ORIGIN, shard, KEYS)
    path.write_bytes(path.read_bytes()[:keep])
    assert read_features(path, ORIGIN, shard, KEYS) is None


def test_a_sealed_shard_has_sealed_features(tmp_path: Path, images: Tensor):
    """Neither the numbers nor the origin stand in the file, and another key does not open it."""
    shard = written(tmp_path, images, KEY)
    write_features(tmp_path / "a", FEATURES, ORIGIN, shard, KEYS)
    content = (tmp_path / "a").read_bytes()
    assert FEATURES.numpy().tobytes()[:16] not in content
    assert ORIGIN.encode() not in content
    other = of_secret(bytes([1] * 32))
    strange = StorageKeys(roots={KEY.name: other.root})
    assert read_features(tmp_path / "a", ORIGIN, shard, strange) is None
    with pytest.raises(UserError, match="no key was given"):
        write_features(tmp_path / "b", FEATURES, ORIGIN, shard, StorageKeys())
    assert not (tmp_path / "b").exists()


def test_features_in_the_clear_are_not_read_beside_a_sealed_shard(tmp_path: Path, images: Tensor):
    shard = written(tmp_path, images, None)
    write_features(tmp_path / "a", FEATURES, ORIGIN, shard, KEYS)
    assert read_features(tmp_path / "a", ORIGIN, written(tmp_path, images, KEY), KEYS) is None


def test_the_key_of_a_party_seals_only_its_own_files():
    with pytest.raises(ValueError, match="of client 3 cannot seal files of client 4"):
        PartyKey(KEY.name, PARTY, bytes(32)).of_party("client 4")
