"""What the shards of a run say of themselves, and the keys that open them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fl_vitlora.config import Config
from fl_vitlora.data.shards import (
    TEST_SHARD,
    Shard,
    client_shard,
    open_own_shard,
    open_shard,
    shard_metadata,
    write_shard,
)
from fl_vitlora.encryption import storage_keys as sealing_keys
from fl_vitlora.encryption.keys import derive_key, key_id, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_storage, storage_keys
from fl_vitlora.experiment.run_shards import shards_of
from tests.owned_shards import keys, prepare


@pytest.fixture(params=["ring", "none"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """An owner with a ring, and the shards of two clients in a run folder."""
    return prepare(tmp_path, {"encryption.at_rest": request.param})


def test_shards_of_a_run_tell_classes_and_keys(config: Config, tmp_path: Path) -> None:
    told = shards_of(tmp_path / "run", storage_keys(config))
    ring = open_ring(tmp_path / "owner.key")
    assert told.class_names == tuple(str(digit) for digit in range(10))
    assert told.key == key_id(ring.current)
    sealed = set() if config.encryption.at_rest == "none" else {key_id(ring.current)}
    assert told.sealed == sealed


def rename_classes(path: Path, config: Config, class_names: str) -> None:
    """Writes a shard as an owner with another list of classes would."""
    opened = storage_keys(config)
    metadata = shard_metadata(path, opened) | {"class_names": class_names}
    write_shard(path, open_shard(path, opened), metadata, prepare_storage(config))


def test_a_shard_that_names_other_classes_is_refused_by_name(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "shards" / client_shard(1)
    rename_classes(path, config, '["0","1","2","3","4","5","6","7","8","cat"]')
    with pytest.raises(UserError, match=rf"{path} has other classes than .*'cat'.*'9'"):
        shards_of(tmp_path / "run", storage_keys(config))


def test_a_shard_that_counts_its_classes_otherwise_is_matched_by_name(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "shards" / client_shard(1)
    opened = keys(path.parent) if config.encryption.at_rest == "ring" else None
    before = open_shard(path, keys(path.parent)).labels
    rename_classes(path, config, '["9","8","7","6","5","4","3","2","1","0"]')
    told = shards_of(tmp_path / "run", storage_keys(config))
    assert told.class_names == tuple(str(digit) for digit in range(10))
    labels = open_own_shard(path, told.class_names, opened).labels
    assert torch.equal(labels, 9 - before)


def test_a_shard_without_names_of_classes_is_told(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run" / "shards" / TEST_SHARD
    metadata = shard_metadata(path, keys(path.parent))
    del metadata["class_names"]
    shard: Shard = open_shard(path, keys(path.parent))
    write_shard(path, shard, metadata, prepare_storage(config))
    with pytest.raises(UserError, match=rf"shard {path} has no list of class names, because"):
        shards_of(tmp_path / "run", storage_keys(config))


def test_what_workers_are_handed_opens_files_and_no_image(tmp_path: Path) -> None:
    """The keys of images come of the secret, which does not follow from a storage key."""
    config = prepare(tmp_path, {})
    secret = open_ring(tmp_path / "owner.key").current
    told = shards_of(tmp_path / "run", storage_keys(config))
    handed = storage_keys(config).only(told.sealed)
    travels = pickle.dumps(handed)
    assert sealing_keys.of_secret(secret).root in travels  # the search finds
    derived = [derive_key(secret, f"shared/seed 0/{step}") for step in config.encryption.steps]
    assert derived
    for needle in (secret, *derived):
        assert needle not in travels
        assert needle.hex().encode() not in travels
    assert len(open_shard(tmp_path / "run" / "shards" / client_shard(0), handed)) == 12
