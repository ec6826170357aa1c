"""The data owner's secret: 256 random bits in a file that only the owner can read.

Everything else is derived from it (HKDF-SHA256, RFC 5869). A key id names a secret without
betraying it and may stand in logs and results; the secret and the keys derived from it may not.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_vitlora.errors import UserError

SECRET_BYTES = 32


def derive_key(secret: bytes, context: str) -> bytes:
    """Derives an independent 32-byte key for one purpose.

    Args:
        secret: 32 bytes.
        context: The purpose.

    Returns:
        The key.
    """
    info = f"fl_vitlora/1/{context}".encode()
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(secret)


def key_id(secret: bytes) -> str:
    """Names a secret: 16 hexadecimal digits that say nothing about it.

    Example:
        >>> key_id(bytes(32))
        '1a009aae9b6a6aab'
    """
    return derive_key(secret, "key id")[:8].hex()


def load_or_create_secret(path: Path) -> bytes:
    """Reads the owner's secret; draws and stores one where there is none yet.

    Args:
        path: The key file. It and a folder made for it are for the owner alone (0600, 0700).

    Returns:
        32 bytes.

    Raises:
        UserError: When others may read the file, or it is not a key file.
    """
    if not path.exists():
        _create(path, secrets.token_bytes(SECRET_BYTES))
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (ValueError, OSError):
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise UserError(f"key file {path}: expected {2 * SECRET_BYTES} hexadecimal digits")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"key file {path} can be read by others; run: chmod 600 {path}")
    return secret


def _create(path: Path, secret: bytes) -> None:
    """Writes a new key file; never overwrites one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
            os.fsync(descriptor)
        os.link(temporary, path)  # fails where another process was faster
    except OSError as error:
        raise UserError(f"key file {path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
