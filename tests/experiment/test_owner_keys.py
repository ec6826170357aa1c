"""The owner draws a new secret for shards that exist, or hands out their storage keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_vitlora.config import Config, load
from fl_vitlora.data.owner import key_holder
from fl_vitlora.data.shards import (
    VALIDATION_SHARD,
    Shard,
    client_shard,
    open_shard,
    shard_metadata,
    write_shard,
)
from fl_vitlora.encryption import storage_keys as sealing_keys
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.keys import key_id, open_or_create_ring, open_ring
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.storage_keys import PASSPHRASE, StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.owner_keys import hand_out_keys, rotate_key
from fl_vitlora.experiment.preparation import prepare_storage, storage_keys
from fl_vitlora.experiment.validation import check_storage
from fl_vitlora.models.reading import READER_FILE, write_reader
from tests.owned_shards import keys, prepare


@pytest.fixture(params=["ring", "none"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """An owner with a ring, and the shards of two clients in a run folder."""
    return prepare(tmp_path, {"encryption.at_rest": request.param})


def names(folder: Path) -> set[str]:
    """Returns the names of the keys of all shards, and of the keys under which they are sealed."""
    found = set()
    for path in folder.glob("*.safetensors"):
        found |= {shard_metadata(path, keys(folder))["key_id"]} - {""}
        under = sealed_under(path)
        found |= set() if under is None else {under[0]}
    return found


@pytest.mark.parametrize("place", ["run", "run/shards"])
def test_all_shards_of_a_folder_come_under_a_new_secret(
    config: Config, tmp_path: Path, place: str
) -> None:
    shards = tmp_path / "run" / "shards"
    old, before = names(shards), open_shard(shards / client_shard(0), keys(shards)).images
    name, changed = rotate_key(config, [tmp_path / place])
    ring = open_ring(tmp_path / "owner.key")
    assert [key_id(secret) for secret in ring.secrets] == [*old, name]
    assert names(shards) == {name}
    assert len(changed) == 3
    assert not torch.equal(open_shard(shards / client_shard(0), keys(shards)).images, before)


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
    reader = PatchReader(weight=torch.eye(48), position=None)
    write_reader(shards / READER_FILE, reader, old if adapted else "")
    if not adapted:
        assert len(rotate_key(config, [shards])[1]) == 3
        return
    before = (tmp_path / "owner.key").read_bytes()
    with pytest.raises(UserError, match="that is adapted to the key of these shards"):
        rotate_key(config, [shards])
    assert (tmp_path / "owner.key").read_bytes() == before
    assert names(shards) == {old}


def test_plain_shards_are_sealed_anew_and_stay_plain(tmp_path: Path) -> None:
    config = prepare(tmp_path, {"encryption.steps": []})
    shards = tmp_path / "run" / "shards"
    (old,) = names(shards)
    before = open_shard(shards / client_shard(0), keys(shards))
    name, changed = rotate_key(config, [shards])
    assert (len(changed), names(shards)) == (3, {name})
    assert name != old
    after = open_shard(shards / client_shard(0), keys(shards))
    assert torch.equal(before.images, after.images)
    assert torch.equal(before.labels, after.labels)


def test_plain_shards_in_the_clear_have_no_key_to_rotate(tmp_path: Path) -> None:
    config = prepare(tmp_path, {"encryption.steps": [], "encryption.at_rest": "none"})
    with pytest.raises(UserError, match="is not encrypted under a key ring"):
        rotate_key(config, [tmp_path / "run"])


def test_what_a_passphrase_seals_stays_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing_keys, "SCRYPT", {"n": 16, "r": 8, "p": 1})
    monkeypatch.setattr(sealing_keys, "_asked", lambda: "")
    monkeypatch.setenv(PASSPHRASE, "four common words")
    config = prepare(tmp_path, {"encryption.at_rest": "passphrase"})
    path = tmp_path / "run" / "shards" / client_shard(0)
    before = sealed_under(path)
    assert before is not None
    assert before[0].startswith("passphrase/")
    name, changed = rotate_key(config, [tmp_path / "run"])
    assert len(changed) == 3
    assert shard_metadata(path, StorageKeys())["key_id"] == name
    assert sealed_under(path) == before
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(UserError, match=PASSPHRASE):
        check_storage(config)
    with pytest.raises(UserError, match=f"{path} is sealed under a passphrase"):
        shard_metadata(path, storage_keys(config))


def test_each_party_is_handed_what_opens_its_own_files(tmp_path: Path) -> None:
    config = prepare(tmp_path, {})
    shards, out = tmp_path / "run" / "shards", tmp_path / "out" / "keys"
    files = hand_out_keys(config, [tmp_path / "run"], out)
    assert sorted(file.name for file in files) == [
        "client-00000.key",
        "client-00001.key",
        "test.key",
    ]
    assert out.stat().st_mode & 0o777 == 0o700
    nowhere = load(None, {"encryption.key_file": str(tmp_path / "nowhere.key")})
    for file in files:
        own = storage_keys(nowhere, file)
        for path in shards.glob("*.safetensors"):
            if path.stem == file.stem:
                assert len(open_shard(path, own)) > 0
            else:
                with pytest.raises(UserError, match=f"{path} is sealed .* but storage key {file}"):
                    open_shard(path, own)
    secret = open_ring(tmp_path / "owner.key").current.hex()
    assert not any(secret in file.read_text() for file in files)


@pytest.mark.parametrize("own", [False, True], ids=["at the server", "at the clients"])
def test_the_key_of_a_party_opens_its_validation_images_as_well(
    tmp_path: Path, *, own: bool
) -> None:
    halves = [np.arange(0, 3), np.arange(3, 5)]
    parts = {"test_parts": halves, "validation": halves} if own else {"validation": halves[:1]}
    config = prepare(tmp_path, {}, **parts)
    shards, parties = tmp_path / "run" / "shards", {"client-00000", "client-00001"}
    files = hand_out_keys(config, [tmp_path / "run"], tmp_path / "keys")
    assert {file.stem for file in files} == (parties if own else {*parties, "test"})
    nowhere = load(None, {"encryption.key_file": str(tmp_path / "nowhere.key")})
    name = client_shard(1, "validation") if own else VALIDATION_SHARD
    file = tmp_path / "keys" / ("client-00001.key" if own else "test.key")
    assert len(open_shard(shards / name, storage_keys(nowhere, file))) == len(halves[int(own)])


def test_no_key_is_handed_out_for_what_is_in_the_clear(tmp_path: Path) -> None:
    config = prepare(tmp_path, {"encryption.at_rest": "none"})
    with pytest.raises(UserError, match=r"is not sealed .*, so this shard has no storage key"):
        hand_out_keys(config, [tmp_path / "run"], tmp_path / "keys")
    assert not (tmp_path / "keys").exists()


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
    opened = storage_keys(config)
    shard, metadata = open_shard(path, opened), shard_metadata(path, opened)
    changed = {name: told for name, told in metadata.items() if name != field}
    changed |= {} if value is None else {field: value}
    write_shard(path, shard, changed, prepare_storage(config))
    before = {path: path.read_bytes() for path in (*shards.iterdir(), tmp_path / "owner.key")}
    with pytest.raises(UserError) as caught:
        rotate_key(config, [shards])
    if field == "key_id":
        missing = "encrypted" if config.encryption.at_rest == "none" else "key_id"
        assert ("no key" if value else missing) in str(caught.value)
    else:
        assert field in str(caught.value)
    assert str(path) in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("shape", [(20, 3, 16, 18), (20, 3, 6, 16), (20, 0, 16, 16), (20, 3, 0, 0)])
def test_images_that_do_not_fit_the_metadata_are_refused(
    config: Config, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "run" / "shards" / client_shard(1)
    metadata = shard_metadata(path, storage_keys(config))
    images, labels = torch.zeros(shape, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)
    write_shard(path, Shard(images=images, labels=labels), metadata, prepare_storage(config))
    with pytest.raises(UserError, match=f"shard {path}: (block_size|expected images with)"):
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
    return holder.decrypt(open_shard(path, keys(path.parent)).images, "client 0")
