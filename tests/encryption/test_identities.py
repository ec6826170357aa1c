"""Identity keys: their files, and what is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_vitlora.encryption.identities import (
    Identity,
    Pins,
    draw_identity,
    line,
    open_identities,
    open_or_create_identities,
    open_pins,
    private_path,
    write_private,
)
from fl_vitlora.errors import UserError


def test_signatures_are_those_of_rfc_8032():
    """Section 7.1, test 1: the empty message."""
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac"
        "c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    identity = Identity(client=0, private=bytes.fromhex(private))
    assert identity.public.hex() == public
    assert identity.sign(b"").hex() == signature


def test_an_identity_does_not_show_its_key():
    identity = draw_identity(0)
    assert repr(identity.private) not in repr(identity)
    assert identity.private.hex() not in repr(identity)


def test_no_signature_is_that_of_another_client_key_or_message():
    one, other = draw_identity(0), draw_identity(1)
    pins = Pins(keys={0: one.public, 1: other.public})
    signature = one.sign(b"this")
    assert pins.signed(0, b"this", signature)
    assert not pins.signed(0, b"that", signature)
    assert not pins.signed(1, b"this", signature)
    assert not pins.signed(2, b"this", signature)
    for damaged in (b"", signature[:-1], bytes(64), 7):
        assert not pins.signed(0, b"this", damaged)  # type: ignore[arg-type]


def test_a_simulation_makes_all_identities_once(tmp_path: Path):
    pins = tmp_path / "keys" / "clients.pub"
    made = open_or_create_identities(pins, 3)
    assert sorted(made.private_keys) == sorted(made.pins.keys) == [0, 1, 2]
    assert len(set(made.pins.keys.values())) == 3
    assert open_or_create_identities(pins, 2) == made
    assert stat.S_IMODE(private_path(pins).stat().st_mode) == 0o600
    assert not any(key.hex() in pins.read_text() for key in made.private_keys.values())
    with pytest.raises(UserError, match="client 3 has no key there"):
        open_or_create_identities(pins, 4)


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path):
    pins = tmp_path / "clients.pub"
    open_or_create_identities(pins, 3)
    private_path(pins).chmod(0o640)
    with pytest.raises(UserError, match="can be read by other users; run: chmod 600"):
        open_identities(pins, private_path(pins))


def test_a_private_key_is_never_overwritten(tmp_path: Path):
    path = tmp_path / "mine"
    write_private(path, [draw_identity(0)])
    before = path.read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        write_private(path, [draw_identity(0)])
    assert path.read_bytes() == before


def test_an_identity_that_is_not_pinned_is_refused(tmp_path: Path):
    pins = tmp_path / "clients.pub"
    open_or_create_identities(pins, 3)
    write_private(tmp_path / "mine", [draw_identity(1)])
    with pytest.raises(UserError, match="the key of client 1 is not the one in"):
        open_identities(pins, tmp_path / "mine")


KEY = bytes(range(32))
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "nothing": (lambda: "", "expected in every line"),
    "no number": (lambda: f"me {KEY.hex()}\n", "expected in every line"),
    "a short key": (lambda: line(0, KEY[:-1]), "expected in every line"),
    "a negative number": (lambda: line(-1, KEY), "expected in every line"),
    "three words": (lambda: f"0 {KEY.hex()} yes\n", "expected in every line"),
    "a client twice": (lambda: line(0, KEY) + line(0, KEY[::-1]), "expected each client once"),
    "a key twice": (lambda: line(0, KEY) + line(1, KEY), "two clients have the same key"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_of_public_keys_that_means_nothing_is_refused(what: str, tmp_path: Path):
    make, told = REFUSED[what]
    path = tmp_path / "clients.pub"
    path.write_text(make())
    with pytest.raises(UserError, match=told):
        open_pins(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"clients\.pub: no such file"):
        open_pins(tmp_path / "clients.pub")
