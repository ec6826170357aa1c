"""The owner's key ring: drawn for the owner's eyes alone, never overwritten, never in names."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import traceback
from pathlib import Path

import pytest

from fl_vitlora.encryption.keys import derive_key, key_id, open_or_create_ring, open_ring
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
        ring = open_or_create_ring(path)
    finally:
        os.umask(before)
    assert len(ring.current) == 32
    assert ring.secrets == (ring.current,)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert bytes.fromhex(path.read_text()) == ring.current


def test_a_key_that_is_there_is_read_and_never_overwritten(tmp_path: Path):
    path = store(tmp_path / "owner.key", SECRET.hex().upper().encode() + b"\n")
    before = path.read_bytes()
    assert open_or_create_ring(path) == open_or_create_ring(path) == open_ring(path)
    assert open_ring(path).secrets == (SECRET,)
    assert path.read_bytes() == before


def test_two_owners_draw_different_keys(tmp_path: Path):
    rings = [open_or_create_ring(tmp_path / name) for name in "ab"]
    assert rings[0].current != rings[1].current


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, permissions: int):
    path = store(tmp_path / "owner.key", SECRET.hex().encode(), permissions)
    with pytest.raises(UserError, match=f"can be read by other users; run: chmod 600 {path}"):
        open_or_create_ring(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        SECRET,
        SECRET.hex().encode()[:-2],
        SECRET.hex().encode() + b"00",
        b"\xff" * 64,
        SECRET.hex().encode() + b"\n00\n",
        SECRET.hex().encode() + b"\nsecret\n",
        b"\n\n",
    ],
    ids=["empty", "words", "raw", "short", "long", "binary", "cut off", "words too", "blank"],
)
def test_what_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes):
    path = store(tmp_path / "owner.key", content)
    with pytest.raises(UserError, match="expected a file with 64 hexadecimal digits") as caught:
        open_or_create_ring(path)
    assert path.read_bytes() == content
    assert content.decode("ascii", "replace")[:8] not in str(caught.value) or not content


def test_a_place_that_cannot_hold_a_key_is_refused(tmp_path: Path):
    file = store(tmp_path / "file", b"")
    with pytest.raises(UserError, match="cannot be written"):
        open_or_create_ring(file / "owner.key")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(UserError, match="expected a file"):
        open_or_create_ring(tmp_path / "folder")


@pytest.mark.parametrize("place", [".", "/dev/zero", "pipe"])
def test_what_is_no_file_is_refused_without_reading(tmp_path: Path, place: str):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a file, got a folder or a device"):
        open_or_create_ring(tmp_path / place)


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path):
    (tmp_path / "owner.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        open_or_create_ring(tmp_path / "owner.key")
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


ANOTHER, THIRD = bytes(range(1, 33)), bytes(range(2, 34))


def lines(*secrets: bytes) -> bytes:
    return b"".join(secret.hex().encode() + b"\n" for secret in secrets)


def test_a_ring_of_several_lines_encrypts_with_the_last(tmp_path: Path):
    ring = open_ring(store(tmp_path / "owner.key", lines(SECRET, ANOTHER, THIRD)))
    assert ring.secrets == (SECRET, ANOTHER, THIRD)
    assert ring.current == THIRD


def test_a_rotated_ring_has_a_new_secret_and_the_old_ones_before_it(tmp_path: Path):
    path = store(tmp_path / "owner.key", lines(SECRET, ANOTHER))
    before = os.umask(0)
    try:
        rotated = open_ring(path).rotated()
    finally:
        os.umask(before)
    assert rotated.secrets[:2] == (SECRET, ANOTHER)
    assert len(rotated.secrets) == 3
    assert len(rotated.current) == 32
    assert rotated.current not in (SECRET, ANOTHER)
    assert open_ring(path) == rotated
    assert mode(path) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["owner.key"]


def test_every_rotation_draws_another_secret(tmp_path: Path):
    ring = open_or_create_ring(tmp_path / "owner.key")
    for _ in range(3):
        ring = ring.rotated()
    assert len(set(ring.secrets)) == 4


def test_a_secret_is_found_by_its_id(tmp_path: Path):
    ring = open_ring(store(tmp_path / "owner.key", lines(SECRET, ANOTHER)))
    assert [ring.find(key_id(secret)) for secret in (ANOTHER, SECRET)] == [ANOTHER, SECRET]


def test_an_id_that_is_not_on_the_ring_is_refused_with_those_that_are(tmp_path: Path):
    ring = open_ring(store(tmp_path / "owner.key", lines(SECRET, ANOTHER)))
    with pytest.raises(UserError) as caught:
        ring.find(key_id(THIRD))
    told = str(caught.value)
    assert all(part in told for part in map(key_id, (SECRET, ANOTHER, THIRD)))
    assert str(ring.path) in told
    assert not any(secret.hex() in told for secret in (SECRET, ANOTHER))


def test_a_ring_shows_no_secret(tmp_path: Path):
    shown = repr(open_ring(store(tmp_path / "owner.key", lines(SECRET, ANOTHER))))
    assert "owner.key" in shown
    for secret in (SECRET, ANOTHER):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


@pytest.mark.parametrize("spoilt", [b"x", b"\xff", SECRET.hex().encode()[:10]])
def test_a_spoilt_ring_betrays_nothing_of_the_rest(tmp_path: Path, spoilt: bytes):
    """Neither in the error nor in what it came of, as a traceback shows them."""
    path = store(tmp_path / "owner.key", lines(SECRET, ANOTHER) + spoilt)
    with pytest.raises(UserError) as caught:
        open_ring(path)
    told = "".join(traceback.format_exception(caught.value))
    told += "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert "owner.key" in told
    for secret in (SECRET, ANOTHER):
        assert secret.hex()[:10] not in told


def test_a_ring_that_is_not_there_is_not_made_by_who_only_reads(tmp_path: Path):
    with pytest.raises(UserError, match=r"owner\.key: no such file"):
        open_ring(tmp_path / "owner.key")
    assert list(tmp_path.iterdir()) == []


def test_a_ring_that_cannot_be_stored_keeps_its_old_file(tmp_path: Path):
    """A left-over temporary file of this very process stands for any failure to write."""
    path = store(tmp_path / "owner.key", lines(SECRET))
    ring = open_ring(path)
    (tmp_path / f".owner.key.{os.getpid()}.tmp").mkdir()
    with pytest.raises(UserError, match=r"owner\.key cannot be written"):
        ring.rotated()
    assert path.read_bytes() == lines(SECRET)
