"""The owner's preparations: rotating the key of shards that are out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_vitlora.config import Config, DataConfig, load
from fl_vitlora.data import sources
from fl_vitlora.data.owner import key_holder, write_encrypted_shards
from fl_vitlora.data.shards import client_shard, open_shard, shard_metadata
from fl_vitlora.encryption.keys import key_id, open_or_create_ring, open_ring
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.errors import UserError
from fl_vitlora.models.reading import READER_FILE, write_reader
from fl_vitlora.preparation import rotate_key
from fl_vitlora.sealed import read_sealed, write_sealed


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """An owner with a ring, and the shards of two clients in a run folder."""
    config = load(None, {"encryption.key_file": str(tmp_path / "owner.key")})
    secret = open_or_create_ring(tmp_path / "owner.key").current
    train, test = sources.load(DataConfig(limit=20))
    (tmp_path / "run" / "shards").mkdir(parents=True)
    write_encrypted_shards(
        tmp_path / "run" / "shards",
        train=train,
        test=test,
        parts=[np.arange(0, 12), np.arange(12, 20)],
        test_parts=[],
        holder=key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret),
        metadata={},
    )
    return config


def names(folder: Path) -> set[str]:
    """Tells the keys of all shards."""
    return {shard_metadata(path)["key_id"] for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("place", ["run", "run/shards"])
def test_all_shards_of_a_folder_come_under_a_new_secret(
    config: Config, tmp_path: Path, place: str
) -> None:
    shards = tmp_path / "run" / "shards"
    old, before = names(shards), open_shard(shards / client_shard(0)).images
    name, changed = rotate_key(config, [tmp_path / place])
    ring = open_ring(tmp_path / "owner.key")
    assert [key_id(secret) for secret in ring.secrets] == [*old, name]
    assert names(shards) == {name}
    assert len(changed) == 3
    assert not torch.equal(open_shard(shards / client_shard(0)).images, before)


def test_one_shard_may_be_named(config: Config, tmp_path: Path) -> None:
    shards = tmp_path / "run" / "shards"
    (old,) = names(shards)
    name, changed = rotate_key(config, [shards / client_shard(1)])
    assert changed == [shards / client_shard(1)]
    assert names(shards) == {old, name}


@pytest.mark.parametrize("place", ["nowhere", "owner.key", "run/shards/model.safetensors"])
def test_where_no_shard_is_nothing_is_drawn(config: Config, tmp_path: Path, place: str) -> None:
    before = (tmp_path / "owner.key").read_bytes()
    with pytest.raises(UserError, match="shard"):
        rotate_key(config, [tmp_path / "run", tmp_path / place])
    assert (tmp_path / "owner.key").read_bytes() == before


def test_a_foreign_ring_draws_nothing_and_says_which_setting_names_the_ring(
    config: Config, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    open_or_create_ring(other)
    before, shards = other.read_bytes(), names(tmp_path / "run" / "shards")
    foreign = load(None, {"encryption.key_file": str(other)})
    with pytest.raises(UserError, match=r"--set encryption\.key_file=FILE"):
        rotate_key(foreign, [tmp_path / "run"])
    assert other.read_bytes() == before
    assert names(tmp_path / "run" / "shards") == shards


@pytest.mark.parametrize("adapted", [True, False])
def test_shards_beside_a_model_that_is_adapted_to_their_key_are_refused(
    config: Config, tmp_path: Path, adapted: bool
) -> None:
    """One that is not adapted reads ciphertext of any key alike, and is in nobody's way."""
    shards = tmp_path / "run" / "shards"
    (old,) = names(shards)
    reader = Reader(weight=torch.eye(48), position=None)
    write_reader(shards / READER_FILE, reader, old if adapted else "")
    if not adapted:
        assert len(rotate_key(config, [shards])[1]) == 3
        return
    before = (tmp_path / "owner.key").read_bytes()
    with pytest.raises(UserError, match="is adapted to the key of these shards"):
        rotate_key(config, [shards])
    assert (tmp_path / "owner.key").read_bytes() == before
    assert names(shards) == {old}


WRONG = {
    "steps": ["", "xor", "pixel_shuffling,pixel_shuffling", "pixel_shuffling, EtC", "\n"],
    "block_size": ["four", "0", "-4", "4.0", "3", "32", "", "1e1", "9" * 40, "\u0664"],
    "fixed_blocks": ["one", "-1", "17", ""],
    "fixed_entries": ["one", "-1", "49", ""],
    "scope": ["clients", "", "Shared", "shared,client"],
    "seed": ["none", "-1", "0.5", ""],
    "party": ["client", "client -1", "client one", "", "tester", "client 1 "],
    "part": ["training", "", "Test"],
    "key_id": ["0123456789abcdef", "no key", "\x1b[2J"],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in (*values, None)],
)
def test_a_shard_with_wrong_metadata_is_refused_by_field_before_anything_changes(
    config: Config, tmp_path: Path, field: str, value: str | None
) -> None:
    shards = tmp_path / "run" / "shards"
    path = shards / client_shard(1)
    tensors, metadata = read_sealed(path)
    changed = {name: told for name, told in metadata.items() if name != field}
    write_sealed(path, tensors, changed if value is None else changed | {field: value})
    before = {path: path.read_bytes() for path in (*shards.iterdir(), tmp_path / "owner.key")}
    with pytest.raises(UserError) as caught:
        rotate_key(config, [shards])
    told = {"key_id": "no key" if value else "encrypted"}.get(field, field)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("shape", [(20, 3, 16, 18), (20, 3, 6, 16), (20, 0, 16, 16), (20, 3, 0, 0)])
def test_images_that_do_not_fit_the_metadata_are_refused(
    config: Config, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "run" / "shards" / client_shard(1)
    _, metadata = read_sealed(path)
    images, labels = torch.zeros(shape, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)
    write_sealed(path, {"images": images, "labels": labels}, metadata)
    with pytest.raises(UserError, match=f"shard {path}: (block_size|images of shape)"):
        rotate_key(config, [tmp_path / "run"])


def test_a_shard_that_is_named_twice_is_encrypted_anew_once(config: Config, tmp_path: Path) -> None:
    """Twice over, the second time would decrypt with a key that it is not under any more."""
    shards = tmp_path / "run" / "shards"
    (tmp_path / "link").symlink_to(tmp_path / "run")
    places = [tmp_path / "run", shards / client_shard(0), tmp_path / "link"]
    ring = open_ring(tmp_path / "owner.key")
    plain = decrypted(config, shards / client_shard(0), ring.current)
    rotate_key(config, places)
    now = open_ring(tmp_path / "owner.key").current
    assert torch.equal(decrypted(config, shards / client_shard(0), now), plain)


def decrypted(config: Config, path: Path, secret: bytes) -> torch.Tensor:
    """Opens the shard of client 0."""
    holder = key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret)
    return holder.decrypt(open_shard(path).images, "client 0")
