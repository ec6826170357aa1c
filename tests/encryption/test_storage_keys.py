"""Storage keys open files, and nothing that a ring's secret opens otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_vitlora.encryption import storage_keys
from fl_vitlora.encryption.at_rest import seal, unseal
from fl_vitlora.encryption.keys import derive_key, key_id, open_or_create_ring
from fl_vitlora.encryption.storage_keys import (
    PASSPHRASE,
    StorageKey,
    StorageKeys,
    of_new_passphrase,
    of_ring,
    of_secret,
    open_party_keys,
    root_of_passphrase,
    write_party_key,
)
from fl_vitlora.errors import UserError

SECRET = bytes(range(32))
PRODUCT = dict(storage_keys.SCRYPT)  # before tests make it cheap


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a guess of a passphrase cheap, and nobody is at a terminal."""
    monkeypatch.setattr(storage_keys, "SCRYPT", {"n": 16, "r": 8, "p": 1})
    monkeypatch.setattr(storage_keys, "_asked", lambda: "")
    monkeypatch.delenv(PASSPHRASE, raising=False)
    storage_keys._stretched.cache_clear()


def test_keys_follow_from_a_secret_one_way_and_by_purpose():
    key = of_secret(SECRET)
    assert key.name == key_id(SECRET)
    assert key.root == derive_key(SECRET, "storage")
    keys = {key.root, key.of_party("client 1"), key.of_party("client 2"), key.of_party("test")}
    assert len(keys | {SECRET}) == 5
    assert of_secret(SECRET[::-1]).root != key.root


def test_a_key_is_not_shown():
    key = of_secret(SECRET)
    keys = StorageKeys(roots={key.name: key.root}, parties={("a", "b"): key.root}, source="ring")
    for shown in (repr(key), repr(keys), str(key)):
        assert key.root.hex() not in shown
        assert repr(key.root) not in shown


def test_all_secrets_of_a_ring_open_what_they_sealed(tmp_path: Path):
    first = open_or_create_ring(tmp_path / "owner.key")
    rotated = first.rotated()
    place = tmp_path / "file"
    for secret in rotated.secrets:
        place.write_bytes(b"".join(seal(b"text", memoryview(b"x"), of_secret(secret), "test")))
        assert unseal(place, of_ring(rotated)) == (b"text", bytearray(b"x"))
    with pytest.raises(UserError, match=str(first.path)):
        unseal(place, of_ring(first))  # which has not the last one
    only = of_ring(rotated).only([of_secret(rotated.current).name, "nothing"])
    assert list(only.roots) == [of_secret(rotated.current).name]


def test_a_passphrase_opens_what_it_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PASSPHRASE, "four common words, in German: Käse")
    key, other = of_new_passphrase(), of_new_passphrase()
    assert key.root != other.root  # the salt differs
    salt = bytes.fromhex(key.name.removeprefix("passphrase/"))
    expected = Scrypt(salt=salt, length=32, n=16, r=8, p=1)
    assert key.root == expected.derive("four common words, in German: Käse".encode())
    place = tmp_path / "file"
    place.write_bytes(b"".join(seal(b"text", memoryview(b"x"), key, "test")))
    assert unseal(place, StorageKeys()) == (b"text", bytearray(b"x"))
    handed_over = StorageKeys().only([key.name])
    monkeypatch.setenv(PASSPHRASE, "another one")
    assert unseal(place, handed_over) == (
        b"text",
        bytearray(b"x"),
    )  # as a worker, which has no passphrase
    with pytest.raises(UserError, match=f"encrypted under another passphrase than .* {PASSPHRASE}"):
        unseal(place, StorageKeys())
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(UserError, match=f"{place} is sealed under a passphrase.*{PASSPHRASE}"):
        unseal(place, StorageKeys())


def test_without_a_passphrase_nothing_is_sealed_under_one():
    with pytest.raises(
        UserError, match=f"no passphrase was given; set the environment variable {PASSPHRASE}"
    ):
        of_new_passphrase()


@pytest.mark.parametrize("name", ["passphrase/", "passphrase/xyz", "passphrase/00"])
def test_a_damaged_salt_is_told(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PASSPHRASE, "words")
    with pytest.raises(UserError, match="a shard: the salt in the file's header is damaged"):
        root_of_passphrase(name, "a shard")


def test_a_guess_of_a_passphrase_is_dear():
    """128 MiB and about a second, as OWASP recommends for scrypt."""
    assert 128 * PRODUCT["n"] * PRODUCT["r"] == 2**27


def test_the_key_of_a_party_travels_in_a_file_of_its_own(tmp_path: Path):
    key: StorageKey = of_secret(SECRET)
    path = tmp_path / "client-00003.key"
    before = os.umask(0)
    try:
        write_party_key(path, key.name, "client 3", key.of_party("client 3"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    keys = open_party_keys(path)
    assert keys.parties == {(key.name, "client 3"): key.of_party("client 3")}
    assert keys.roots == {}
    assert key.root.hex() not in path.read_text()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0o600, "no such file"),
        ("", 0o600, "expected in every line a name, 64 hexadecimal digits and a party"),
        (
            "a bb client 3",
            0o600,
            "expected in every line a name, 64 hexadecimal digits and a party",
        ),
        ("a " + 64 * "z" + " client 3", 0o600, "expected in every line"),
        (64 * "0", 0o600, "expected in every line"),
        ("a " + 64 * "0" + " client 3", 0o644, "can be read by other users; run: chmod 600"),
    ],
    ids=["missing", "empty", "short", "no digits", "a ring's secret", "open"],
)
def test_what_is_no_file_of_storage_keys_is_refused(
    tmp_path: Path, content: str | None, mode: int, says: str
):
    path = tmp_path / "storage.key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(UserError, match=says) as caught:
        open_party_keys(path)
    assert str(path) in str(caught.value)
