"""The exported key of one client: it is this client's key, and no help to find another key."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.client_keys import (
    ClientKey,
    derive_client_key,
    open_client_key,
    write_client_key,
)
from fl_vitlora.encryption.holder import TEST, KeyHolder, client_party
from fl_vitlora.encryption.keys import derive_key, key_id, open_ring
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.encryption.storage_keys import of_secret
from fl_vitlora.errors import UserError

SECRET, SEED, OWN = bytes(range(32)), 7, "client 3"
PARTIES = [*map(client_party, range(6)), TEST, "server"]
STEP_NAMES = ("block_scrambling", "pixel_shuffling", "negative_positive")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "client-00003.own"
    write_client_key(path, derive_client_key(SECRET, OWN, SEED))
    return path


def holder(own: ClientKey | None = None, steps: tuple[str, ...] = STEP_NAMES) -> KeyHolder:
    cipher = Cipher(steps=steps, block_size=4, image_shape=(3, 16, 16))
    secret = SECRET if own is None else bytes(32)
    return KeyHolder(cipher=cipher, secret=secret, scope="client", seed=SEED, own=own)


def reader() -> PatchReader:
    draw = torch.Generator().manual_seed(1)
    return PatchReader(
        weight=torch.randn(8, 48, generator=draw), position=torch.randn(16, 8, generator=draw)
    )


@pytest.mark.parametrize("step", STEPS)
def test_the_exported_key_is_the_key_of_the_client_in_every_step(exported: Path, step: str) -> None:
    whole, own = holder(steps=(step,)), holder(open_client_key(exported), steps=(step,))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    encrypted = own.encrypt(images, OWN)
    assert torch.equal(encrypted, whole.encrypt(images, OWN))
    assert torch.equal(own.decrypt(encrypted, OWN), images)


def test_it_adapts_restores_and_measures_under_the_same_wrong_key_scheme(exported: Path) -> None:
    whole, own = holder(), holder(open_client_key(exported))
    turned = own.adapt(reader(), OWN)
    assert torch.equal(turned.weight, whole.adapt(reader(), OWN).weight)
    assert torch.equal(own.restore(turned, OWN).weight, reader().weight)
    assert own.key_id == whole.key_id == key_id(SECRET)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert not torch.equal(own.impostor().encrypt(images, OWN), own.encrypt(images, OWN))


def test_it_opens_the_files_of_its_client_alone(exported: Path) -> None:
    keys, root = open_client_key(exported).storage_keys(), of_secret(SECRET)
    assert keys.find(root.name, OWN, exported) == root.of_party(OWN)
    assert keys.roots == {}
    for party in PARTIES:
        assert keys.can_open(root.name, party) == (party == OWN)


@pytest.mark.parametrize("party", [party for party in PARTIES if party not in (OWN, "server")])
def test_it_refuses_to_be_the_key_of_another_party(exported: Path, party: str) -> None:
    own = holder(open_client_key(exported))
    with pytest.raises(UserError, match=f"the key of {OWN}, not of {party}"):
        own.key(party)


def others() -> dict[str, bytes]:
    """All key material of the owner that a node must not be able to compute."""
    found = {"secret": SECRET, "storage root": of_secret(SECRET).root}
    for party, seed in itertools.product(PARTIES, (SEED, SEED + 1)):
        for step in STEPS:
            found[f"{party}/seed {seed}/{step}"] = derive_key(SECRET, f"{party}/seed {seed}/{step}")
    for party in PARTIES:
        found[f"files of {party}"] = of_secret(SECRET).of_party(party)
    for step in STEPS:
        del found[f"{OWN}/seed {SEED}/{step}"]
    del found[f"files of {OWN}"]
    return found


def test_no_other_key_is_in_the_file_or_one_derivation_away_from_it(exported: Path) -> None:
    """Every value in the file is tried as secret, and as root, for every purpose of the program."""
    wanted = {value: name for name, value in others().items()}
    key, text = open_client_key(exported), exported.read_text()
    assert not [name for value, name in wanted.items() if value.hex() in text]
    known = {key.storage, *key.subkeys.values()}
    purposes = ["storage", "key id", "a wrong key", "kept shards"]
    purposes += [f"party/{party}" for party in PARTIES]
    purposes += [
        f"{party}/seed {seed}/{step}"
        for party, seed, step in itertools.product(PARTIES, (SEED, SEED + 1), STEPS)
    ]
    for _ in range(2):  # from values of the file, and from values that were made of them
        made = {derive_key(value, purpose) for value in known for purpose in purposes}
        assert not made & wanted.keys()
        known = set(itertools.islice(made, 40))


def test_the_values_of_the_file_come_from_texts_that_name_this_client_alone(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client's keys come from other texts; HKDF's outputs for these are independent."""
    contexts = list[str]()

    def record(secret: bytes, context: str) -> bytes:
        contexts.append(context)
        return derive_key(secret, context)

    monkeypatch.setattr("fl_vitlora.encryption.cipher.derive_key", record)
    key = derive_client_key(SECRET, OWN, SEED)
    assert sorted(contexts) == sorted(f"{OWN}/seed {SEED}/{step}" for step in STEPS)
    assert dataclasses.replace(key, source="") == dataclasses.replace(
        open_client_key(exported), source=""
    )
    assert len({key.storage, *key.subkeys.values()}) == len(STEPS) + 1


def test_secrets_are_not_printed_and_only_the_user_can_read_the_file(exported: Path) -> None:
    key = open_client_key(exported)
    shown = repr(key) + repr(holder(key))
    assert all(value.hex() not in shown for value in (key.storage, *key.subkeys.values()))
    assert exported.stat().st_mode & 0o777 == 0o600
    exported.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        open_client_key(exported)


def test_a_file_that_exists_is_not_replaced(exported: Path) -> None:
    before = exported.read_text()
    with pytest.raises(UserError, match="File exists"):
        write_client_key(exported, derive_client_key(SECRET, OWN, SEED))
    assert exported.read_text() == before


@pytest.mark.parametrize("line", ["party", "seed", "key_id", "storage", "step pixel_shuffling"])
def test_a_damaged_file_is_refused_with_its_name(exported: Path, line: str) -> None:
    lines = exported.read_text().splitlines(keepends=True)
    exported.write_text("".join(text for text in lines if not text.startswith(line)))
    with pytest.raises(UserError, match=f"client key {exported}"):
        open_client_key(exported)


def test_a_subkey_that_was_cut_is_refused(exported: Path) -> None:
    text = exported.read_text()
    exported.write_text(text.rstrip()[:-2] + "\n")
    with pytest.raises(UserError, match="31 bytes"):
        open_client_key(exported)


def test_another_seed_or_scope_is_refused(exported: Path) -> None:
    key = open_client_key(exported)
    with pytest.raises(UserError, match="seed 7, but the experiment has seed 8"):
        dataclasses.replace(holder(key), seed=8).key(OWN)
    with pytest.raises(UserError, match="scope is shared"):
        dataclasses.replace(holder(key), scope="shared").key(OWN)


def test_it_is_no_key_ring_and_says_so(exported: Path) -> None:
    with pytest.raises(UserError, match="this is the key of one client"):
        open_ring(exported)
