"""Identity keys, with which clients verify each other's signatures.

An identity is an Ed25519 key pair (RFC 8032) that a client keeps over many runs. The private key
signs; it stays in a file that only its client can read. The public keys of all clients, the *pins*,
are in one file that the owner hands out, for example `clients.pub`. In both files a line has the
number of a client and a key in hexadecimal digits:

    0 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29

The server forwards signatures but cannot make them, so it cannot pretend to be a client.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import (
    PRIVATE,
    PUBLIC,
    WriteError,
    make_folder,
    make_private_folder,
    write_atomically,
)

KEY_BYTES, SIGNATURE_BYTES = 32, 64
SETTING = "privacy.client_keys"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of one client.

    Attributes:
        client: The number of the client.
        private: The private key, 32 bytes.
    """

    client: int
    private: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """Returns the public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Returns the signature of a message, 64 bytes.

        Example:
            >>> identity = Identity(client=3, private=bytes(32))
            >>> pins = Pins(keys={3: identity.public})
            >>> pins.signed(3, b"a list", identity.sign(b"a list"))
            True
            >>> pins.signed(3, b"another list", identity.sign(b"a list"))
            False
        """
        return self._key.sign(message)

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The public identity keys of all clients.

    Attributes:
        keys: The public key of each client, 32 bytes, by the number of the client.
        source: The file from which the keys were read, for error messages.
    """

    keys: Mapping[int, bytes]
    source: str = ""

    def signed(self, client: int, message: bytes, signature: bytes) -> bool:
        """Returns True if a client with a pinned key has signed a message."""
        if client not in self.keys:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.keys[client]).verify(signature, message)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class Identities:
    """The identity keys that a process needs to sign, and to verify signatures.

    Attributes:
        pins: The public identity keys of all clients.
        private_keys: The private keys of the clients in this process, by the number of the client:
            of all clients in a simulation, and of one client on a deployed node.
    """

    pins: Pins
    private_keys: Mapping[int, bytes] = field(repr=False)

    def of(self, client: int) -> Identity:
        """Returns the identity of a client.

        Raises:
            ValueError: If this process does not have the identity of the client.
        """
        if client not in self.private_keys:
            raise ValueError(f"client {client} has no identity key, which {SETTING} requires")
        return Identity(client=client, private=self.private_keys[client])


def draw_identity(client: int) -> Identity:
    """Draws a new identity from the system's randomness."""
    return Identity(client=client, private=Ed25519PrivateKey.generate().private_bytes_raw())


def open_pins(path: Path) -> Pins:
    """Reads the file with the public identity keys of all clients.

    Raises:
        UserError: If the file does not exist, a line is not the number of a client and a key, or
            two lines have the same client or the same key.
    """
    keys = _read(path, SETTING)
    if len(set(keys.values())) < len(keys):
        raise UserError(f"{SETTING} {path}: two clients have the same key; each needs its own")
    return Pins(keys=keys, source=str(path))


def open_identities(pins: Path, private: Path) -> Identities:
    """Reads the public keys of all clients, and the private keys of some clients.

    Args:
        pins: The file with the public keys, which the owner handed out.
        private: The file with one or more private keys.

    Raises:
        UserError: If a file cannot be used, other users can read the private keys, or if a private
            key does not belong to the pinned public key of its client.
    """
    found, known = _read(private, "identity"), open_pins(pins)
    if os.name == "posix" and stat.S_IMODE(private.stat().st_mode) & 0o077:
        raise UserError(f"identity {private} can be read by other users; run: chmod 600 {private}")
    for client, key in found.items():
        if known.keys.get(client) != Identity(client=client, private=key).public:
            raise UserError(
                f"identity {private}: the key of client {client} is not the one in {pins}; add the "
                "client's public key there, or name another file"
            )
    return Identities(pins=known, private_keys=found)


def private_path(pins: Path) -> Path:
    """Returns the file with the private keys of a simulation, which lies beside the public keys.

    Example:
        >>> private_path(Path("keys/clients.pub")).as_posix()
        'keys/clients.private'
    """
    return pins.with_suffix(".private")


def open_or_create_identities(pins: Path, clients: int) -> Identities:
    """Reads the identities of all clients of a simulation, or makes new ones if there are none.

    Args:
        pins: The file for the public keys. The private keys lie beside it (`private_path`).
        clients: The number of clients.

    Raises:
        UserError: If a file cannot be used or written, or has no key of a client.
    """
    private = private_path(pins)
    if not pins.exists() and not private.exists():
        made = [draw_identity(client) for client in range(clients)]
        write_private(private, made)
        _write(pins, "".join(line(one.client, one.public) for one in made), PUBLIC)
    found = open_identities(pins, private)
    lacking = next((c for c in range(clients) if c not in found.private_keys), None)
    if lacking is not None:
        raise UserError(
            f"{SETTING} {pins}: client {lacking} has no key there; remove {pins} and {private}, "
            "and the simulation makes new keys, or name a new file"
        )
    return found


def write_private(path: Path, identities: list[Identity]) -> None:
    """Writes private keys to a file that only the current user can read.

    Raises:
        UserError: If the file exists, or cannot be written.
    """
    try:
        if not path.absolute().parent.exists():
            make_folder(path.absolute().parent.parent)
            make_private_folder(path.absolute().parent)
    except WriteError as error:
        raise UserError(f"identity {path} cannot be written: {error.reason}") from None
    _write(path, "".join(line(one.client, one.private) for one in identities), PRIVATE)


def line(client: int, key: bytes) -> str:
    r"""Returns the line of one client in a file of keys.

    Example:
        >>> line(2, bytes(2))
        '2 0000\n'
    """
    return f"{client} {key.hex()}\n"


def _write(path: Path, text: str, mode: int) -> None:
    try:
        write_atomically(path, text, mode=mode, new=True)
    except WriteError as error:
        raise UserError(f"{SETTING} {path} cannot be written: {error.reason}") from None


def _read(path: Path, what: str) -> dict[int, bytes]:
    """Reads a file of keys; returns the key of each client, by the number of the client."""
    try:
        pairs = [text.split() for text in path.read_text(encoding="ascii").splitlines()]
        found = [(int(client), bytes.fromhex(key)) for client, key in pairs]
    except FileNotFoundError:
        raise UserError(f"{what} {path}: no such file") from None
    except (ValueError, OSError):
        found = []
    if not found or any(client < 0 or len(key) != KEY_BYTES for client, key in found):
        raise UserError(
            f"{what} {path}: expected in every line the number of a client and a key of "
            f"{2 * KEY_BYTES} hexadecimal digits"
        )
    if len(dict(found)) < len(found):
        raise UserError(f"{what} {path}: expected each client once")
    return dict(found)
