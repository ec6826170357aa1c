"""The owner's secret: drawn once, for the owner's eyes alone, never overwritten, never in names."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from fl_vitlora.encryption.keys import derive_key, key_id, load_or_create_secret
from fl_vitlora.errors import UserError

SECRET = bytes(range(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def store(path: Path, content: bytes, permissions: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(permissions)
    return path


def test_a_missing_key_is_drawn_for_the_owner_alone(tmp_path: Path):
    path = tmp_path / "keys" / "owner.key"
    before = os.umask(0)
    try:
        secret = load_or_create_secret(path)
    finally:
        os.umask(before)
    assert len(secret) == 32
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert bytes.fromhex(path.read_text()) == secret


def test_a_key_that_is_there_is_read_and_never_overwritten(tmp_path: Path):
    path = store(tmp_path / "owner.key", SECRET.hex().upper().encode() + b"\n")
    before = path.read_bytes()
    assert load_or_create_secret(path) == load_or_create_secret(path) == SECRET
    assert path.read_bytes() == before


def test_two_owners_draw_different_keys(tmp_path: Path):
    assert load_or_create_secret(tmp_path / "a") != load_or_create_secret(tmp_path / "b")


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, permissions: int):
    path = store(tmp_path / "owner.key", SECRET.hex().encode(), permissions)
    with pytest.raises(UserError, match=f"can be read by others; run: chmod 600 {path}"):
        load_or_create_secret(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        SECRET,
        SECRET.hex().encode()[:-2],
        SECRET.hex().encode() + b"00",
        b"\xff" * 64,
    ],
    ids=["empty", "words", "raw", "short", "long", "binary"],
)
def test_what_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes):
    path = store(tmp_path / "owner.key", content)
    with pytest.raises(UserError, match="expected 64 hexadecimal digits") as caught:
        load_or_create_secret(path)
    assert path.read_bytes() == content
    assert content.decode("ascii", "replace")[:8] not in str(caught.value) or not content


def test_a_place_that_cannot_hold_a_key_is_refused(tmp_path: Path):
    file = store(tmp_path / "file", b"")
    with pytest.raises(UserError, match="cannot be written"):
        load_or_create_secret(file / "owner.key")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(UserError, match="expected 64 hexadecimal digits"):
        load_or_create_secret(tmp_path / "folder")


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path):
    (tmp_path / "owner.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        load_or_create_secret(tmp_path / "owner.key")
    assert not (tmp_path / "elsewhere").exists()


def test_derivation_is_hkdf_of_rfc_5869():
    """Extract with a salt of zeros, then one step of expand, by hand."""
    extracted = hmac.new(bytes(32), SECRET, hashlib.sha256).digest()
    info = b"fl_vitlora/1/shared/pixel_shuffling"
    expanded = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    assert derive_key(SECRET, "shared/pixel_shuffling") == expanded


def test_other_secrets_and_contexts_derive_other_keys():
    secrets, contexts = (SECRET, SECRET[::-1]), ("a", "b", "key id")
    assert len({derive_key(s, c) for s in secrets for c in contexts}) == 6


def test_a_key_id_names_a_secret_and_holds_nothing_of_it():
    assert key_id(SECRET) == key_id(SECRET)
    assert key_id(SECRET) != key_id(SECRET[::-1])
    assert len(key_id(SECRET)) == 16
    assert key_id(SECRET) not in SECRET.hex()
    assert not derive_key(SECRET, "shared").startswith(bytes.fromhex(key_id(SECRET)))
