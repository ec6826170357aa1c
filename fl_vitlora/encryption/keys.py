"""The data owner's key ring: secrets of 256 random bits in a file that only the owner can read.

The key ring is a text file with one secret per line, in hexadecimal digits. The last secret in the
file encrypts new data. The earlier secrets decrypt data that was encrypted before the owner changed
(rotated) the secret. All keys are derived from a secret (HKDF-SHA256, RFC 5869). A key id
identifies a secret without revealing it, so key ids may appear in logs and results. Secrets, and
keys derived from secrets, must not appear in logs or results.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import (
    PRIVATE,
    WriteError,
    make_folder,
    make_private_folder,
    write_atomically,
)

SECRET_BYTES = 32
CLIENT_KEY = b"fl_vitlora client key 1\n"  # the first line of the exported key of one client


def derive_key(secret: bytes, context: str) -> bytes:
    """Derives an independent 32-byte key for one purpose.

    Args:
        secret: The owner's secret of 32 bytes.
        context: A text that says what the key is for, for example "storage". Different texts give
            independent keys.

    Returns:
        A key of 32 bytes.
    """
    info = f"fl_vitlora/1/{context}".encode()
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(secret)


def key_id(secret: bytes) -> str:
    """Returns the id of a secret: 16 hexadecimal digits that reveal nothing about the secret.

    Example:
        >>> key_id(bytes(32))
        '1a009aae9b6a6aab'
    """
    return derive_key(secret, "key id")[:8].hex()


@dataclass(frozen=True)
class KeyRing:
    """The key ring: all secrets of the data owner, the oldest first.

    Attributes:
        path: The path of the file with the secrets.
        secrets: The secrets, at least one, 32 bytes each.
    """

    path: Path
    secrets: tuple[bytes, ...] = field(repr=False)

    @property
    def current(self) -> bytes:
        """Returns the newest secret, which encrypts new data."""
        return self.secrets[-1]

    def find(self, name: str) -> bytes:
        """Returns the secret with the key id `name`.

        Raises:
            UserError: When the ring has no secret with this id.
        """
        named = {key_id(secret): secret for secret in self.secrets}
        if name not in named:
            raise UserError(
                f"key ring {self.path} has no key {name}, only {', '.join(named)}; name the file "
                "of the key ring that has this key: --set encryption.key_file=FILE"
            )
        return named[name]

    def secrets_of(self, names: Mapping[str, str]) -> dict[str, bytes]:
        """Returns the secrets of parties; parties whose secret is not in the ring are left out.

        Args:
            names: The key id of each party's secret, by the name of the party.

        Raises:
            UserError: When the ring has none of the secrets.
        """
        known = {key_id(secret): secret for secret in self.secrets}
        found = {party: known[name] for party, name in names.items() if name in known}
        if not found:
            wanted = ", ".join(sorted(set(names.values())))
            raise UserError(f"key ring {self.path} has none of the keys {wanted}")
        return found

    def rotated(self) -> KeyRing:
        """Writes a key ring with one more random secret to the file, and returns this key ring."""
        ring = KeyRing(self.path, (*self.secrets, secrets.token_bytes(SECRET_BYTES)))
        _store(self.path, ring.secrets, replace=True)
        return ring


def open_ring(path: Path) -> KeyRing:
    """Reads the owner's key ring.

    Raises:
        UserError: When the file does not exist, other users can read it, or it is not a key ring.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"key ring {path}: expected a file, got a folder or a device")
    try:
        lines = path.read_text(encoding="ascii").split()
        found = tuple(bytes.fromhex(line) for line in lines)
    except FileNotFoundError:
        raise UserError(f"key ring {path}: no such file") from None
    except (ValueError, OSError):
        found = ()
    if not found and is_client_key(path):
        raise UserError(
            f"key ring {path}: this is the key of one client, which only a deployed node of this "
            "client can use; name the owner's key ring"
        )
    if not found or any(len(secret) != SECRET_BYTES for secret in found):
        raise UserError(
            f"key ring {path}: expected a file with {2 * SECRET_BYTES} hexadecimal digits in every "
            "line"
        )
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"key ring {path} can be read by other users; run: chmod 600 {path}")
    return KeyRing(path, found)


def is_client_key(path: Path) -> bool:
    """Returns True if a file begins like the exported key of one client (`client_keys`)."""
    try:
        with path.open("rb") as file:
            return file.read(len(CLIENT_KEY)) == CLIENT_KEY
    except OSError:
        return False


def open_rings(path: Path) -> KeyRing:
    """Reads a key ring, or all key rings of a folder as one ring.

    A ring that consists of several rings can only find secrets by their ids. None of its secrets is
    meant for new data.

    Raises:
        UserError: When a file of the folder is no key ring, or `open_ring` refuses it.
    """
    if not path.is_dir():
        return open_ring(path)
    rings = [open_ring(file) for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    if not rings:
        raise UserError(f"key rings {path}: expected key rings in this folder, found none")
    return KeyRing(path, tuple(secret for ring in rings for secret in ring.secrets))


def open_or_create_ring(path: Path) -> KeyRing:
    """Reads the owner's key ring; if the file does not exist, creates a ring with one new secret.

    Args:
        path: The path of the key ring's file. A new file can be read only by the current user (mode
            0600), and so can a new folder around it (mode 0700).

    Raises:
        UserError: When the file cannot be written, other users can read it, or it is not a key
            ring.
    """
    if not path.exists():
        _store(path, [secrets.token_bytes(SECRET_BYTES)], replace=False)
    return open_ring(path)


def _store(path: Path, ring: Sequence[bytes], *, replace: bool) -> None:
    """Writes a key ring completely or not at all.

    If `replace` is False, an existing file is never replaced.
    """
    text = "".join(secret.hex() + "\n" for secret in ring)
    try:
        if not path.parent.exists():
            make_folder(path.parent.parent)
            make_private_folder(path.parent)
        write_atomically(path, text, mode=PRIVATE, new=not replace)
    except WriteError as error:
        raise UserError(f"key ring {path} cannot be written: {error.reason}") from None
