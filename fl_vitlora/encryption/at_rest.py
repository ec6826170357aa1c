"""Files that are encrypted ("sealed") on disk.

A sealed file has a header, a small text and a body. The header is not encrypted. Text and body are
encrypted and authenticated. Without the key, the file reveals only the header and its own length. A
sealed file has the format of safetensors, and its single tensor `sealed` holds the ciphertext. So
any program for safetensors can open the file, but finds only ciphertext:

    header   names of key and party, a random salt, a check of the key, the length of the text
    chunk 0  the text
    chunk i  the body, 1 MiB each; the last chunk may be shorter; an empty body still has one chunk

Each chunk is encrypted with AES-256-GCM. Every file has its own key, which HKDF-SHA256 derives from
the party's storage key and a salt of 256 random bits. Because no two files have the same key, the
nonces need not be random. A nonce consists of the number of the chunk and a mark on the last chunk,
as in STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015). Because the nonces count the chunks
and mark the last one, opening a file fails if chunks were cut off, added or reordered. The bytes of
the header are authenticated with every chunk. With GCM alone, an attacker could make a file that
opens without an error under two different keys. Therefore the header contains a check of the key:
32 bytes that HKDF derives together with the file's key.
"""

from __future__ import annotations

import hmac
import json
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_vitlora.encryption.storage_keys import (
    BY_PASSPHRASE,
    PASSPHRASE,
    PartyKey,
    StorageKey,
    StorageKeys,
)
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import DamagedFileError

SEALED, VERSION = "sealed", "fl_vitlora 1, AES-256-GCM"
KEY, PARTY, SALT, CHECK, TEXT_BYTES = "storage_key", "party", "salt", "check", "text_bytes"
CHUNK = 2**20  # bytes of plain content in a chunk
TAG = 16  # bytes of the authentication tag that encryption adds to each chunk
LENGTH = struct.Struct("<Q")
LONGEST_HEADER, LONGEST_TEXT = 2**16, 2**26
SALT_BYTES = 32
INFO = b"fl_vitlora/1/sealed file"


@dataclass(frozen=True)
class Header:
    """The part of a sealed file that can be read without its key.

    Attributes:
        key: The name of the root storage key, from which the party's storage key is derived.
        party: The party that the file belongs to, for example "client 3".
        salt: 32 random bytes that only this file has.
        check: 32 bytes that can be derived only from the right key.
        text: The length of the small text in bytes, before encryption.
        sealed: The length of all encrypted chunks together in bytes.
        raw: The bytes of the header as they are in the file.
    """

    key: str
    party: str
    salt: bytes
    check: bytes
    text: int
    sealed: int
    raw: bytes


def seal(text: bytes, body: memoryview, key: StorageKey | PartyKey, party: str) -> Iterator[bytes]:
    """Encrypts a text and a body into the parts of a sealed file.

    Args:
        text: A small text that can be decrypted without the body.
        body: The rest of the content, for example the pixels of images.
        key: The owner's root storage key, or the storage key of this party.
        party: The party that the file belongs to, for example "client 3".

    Yields:
        The parts of the file in their order: the header, then the encrypted chunks.
    """
    yield from seal_pieces(text, [body], len(body), key, party)


def seal_pieces(
    text: bytes, pieces: Iterable[memoryview], size: int, key: StorageKey | PartyKey, party: str
) -> Iterator[bytes]:
    """Encrypts a text and a body as `seal` does, but never has the whole body in memory.

    Args:
        text: A small text that can be decrypted without the body.
        pieces: The pieces of the body, in order; each has any number of bytes.
        size: The number of bytes of all pieces together.
        key: The owner's root storage key, or the storage key of this party.
        party: The party that the file belongs to, for example "client 3".

    Yields:
        The parts of the file in their order: the header, then the encrypted chunks.

    Raises:
        ValueError: If the pieces have another number of bytes than `size`.
    """
    salt = secrets.token_bytes(SALT_BYTES)
    file_key, check = _derive(key.of_party(party), salt)
    chunks = _chunks(size)
    metadata = {
        SEALED: VERSION,
        KEY: key.name,
        PARTY: party,
        SALT: salt.hex(),
        CHECK: check.hex(),
        TEXT_BYTES: str(len(text)),
    }
    header = _write_header(metadata, len(text) + TAG + size + chunks * TAG)
    cipher = AESGCM(file_key)
    yield header
    yield cipher.encrypt(_nonce(0, last=False), text, header)
    for number, chunk in enumerate(_in_chunks(pieces, size), start=1):
        yield cipher.encrypt(_nonce(number, last=number == chunks), chunk, header)


def sealed_under(path: Path) -> tuple[str, str] | None:
    """Reads from a file's header which storage key seals the file; the header is not verified.

    Returns:
        The name of the root storage key and the name of the party, or None if the file is not
        sealed.

    Raises:
        DamagedFileError: When there is no file, or its header cannot be read.
    """
    with _opened(path) as file:
        header = _read_header(file, path)
    return None if header is None else (header.key, header.party)


def unseal_text(path: Path, keys: StorageKeys) -> bytes:
    """Decrypts only the text of a sealed file.

    Raises:
        UserError: When `keys` does not have the key of the file.
        DamagedFileError: When the header or the text was changed after it was written.
    """
    with _opened(path) as file:
        header, cipher = _begin(file, path, keys)
        return _text(file, header, cipher, path)


def unseal(path: Path, keys: StorageKeys) -> tuple[bytes, bytearray]:
    """Decrypts a sealed file in memory; the plain content is never written to disk.

    Returns:
        The text and the body.

    Raises:
        UserError: When `keys` does not have the key of the file.
        DamagedFileError: When any bit of the file was changed after it was written.
    """
    pieces = unseal_pieces(path, keys)
    text, size = next(pieces), int.from_bytes(next(pieces), "big")
    body, start = bytearray(size), 0
    for piece in pieces:
        body[start : start + len(piece)] = piece
        start += len(piece)
    return text, body


def unseal_pieces(path: Path, keys: StorageKeys) -> Iterator[bytes]:
    """Decrypts a sealed file chunk by chunk, so that the body is never in memory as a whole.

    Each chunk is verified before it is yielded. Only after the last chunk is it certain that
    nothing was cut off the file or added to it.

    Yields:
        The text; then the length of the body, as 8 bytes in big-endian order; then the body, at
        most 1 MiB at a time.

    Raises:
        UserError: When `keys` does not have the key of the file.
        DamagedFileError: When any bit of the file was changed after it was written.
    """
    with _opened(path) as file:
        header, cipher = _begin(file, path, keys)
        yield _text(file, header, cipher, path)
        left = header.sealed - header.text - TAG
        chunks = max(1, -(-left // (CHUNK + TAG)))
        size = left - chunks * TAG
        yield max(0, size).to_bytes(8, "big")
        for number in range(chunks):
            length = min(CHUNK, size - number * CHUNK)
            nonce = _nonce(number + 1, last=number == chunks - 1)
            yield _decrypt(cipher, nonce, _read(file, length + TAG, path), header, path)
        if file.read(1):
            raise DamagedFileError(path, "is damaged: it is longer than its header declares")


def _chunks(size: int) -> int:
    """Returns the number of chunks of a body; an empty body still has one."""
    return max(1, -(-size // CHUNK))


def _in_chunks(pieces: Iterable[memoryview], size: int) -> Iterator[memoryview | bytearray]:
    """Cuts pieces of any size into chunks of `CHUNK` bytes; the last chunk may be shorter.

    Raises:
        ValueError: If the pieces have another number of bytes than `size`.
    """
    rest, seen = bytearray(), 0
    for piece in pieces:
        seen, start = seen + len(piece), 0
        if rest:
            start = min(CHUNK - len(rest), len(piece))
            rest += piece[:start]
            if len(rest) == CHUNK:
                yield rest
                rest = bytearray()
        while len(piece) - start >= CHUNK:
            yield piece[start : start + CHUNK]
            start += CHUNK
        rest += piece[start:]
    if seen != size:
        raise ValueError(f"the body has {seen} bytes, and {size} were announced")
    if rest or not size:
        yield rest


def _begin(file: BinaryIO, path: Path, keys: StorageKeys) -> tuple[Header, AESGCM]:
    """Reads the header of a sealed file; returns the header and a cipher with the file's key."""
    header = _read_header(file, path)
    if header is None:
        raise DamagedFileError(path, "is not sealed (encrypted)")
    file_key, check = _derive(keys.find(header.key, header.party, path), header.salt)
    if not hmac.compare_digest(check, header.check):
        if header.key.startswith(BY_PASSPHRASE):
            raise UserError(
                f"{path} is encrypted under another passphrase than the given one (variable "
                f"{PASSPHRASE}), or its header is damaged"
            )
        raise DamagedFileError(
            path,
            f"is damaged, or it was not encrypted with the key {header.key} that its header names",
        )
    return header, AESGCM(file_key)


def _text(file: BinaryIO, header: Header, cipher: AESGCM, path: Path) -> bytes:
    sealed = _read(file, header.text + TAG, path)
    return _decrypt(cipher, _nonce(0, last=False), sealed, header, path)


def _decrypt(cipher: AESGCM, nonce: bytes, sealed: bytes, header: Header, path: Path) -> bytes:
    try:
        return cipher.decrypt(nonce, sealed, header.raw)
    except InvalidTag:
        raise DamagedFileError(
            path, f"is damaged or was changed: its content cannot be verified with key {header.key}"
        ) from None


def _derive(party_key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Returns the key of a file, and the bytes by which the right key is recognised."""
    both = HKDF(algorithm=SHA256(), length=64, salt=salt, info=INFO).derive(party_key)
    return both[:32], both[32:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _write_header(metadata: Mapping[str, str], size: int) -> bytes:
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": metadata, SEALED: tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH.size)  # safetensors aligns its data to 8 bytes
    return LENGTH.pack(len(text)) + text


def _read_header(file: BinaryIO, path: Path) -> Header | None:
    """Reads the header of a file, or returns None if the file is not sealed."""
    first = file.read(LENGTH.size)
    length = LENGTH.unpack(first)[0] if len(first) == LENGTH.size else 0
    text = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        content = json.loads(text)
        metadata = content["__metadata__"]
        if metadata.get(SEALED) is None:
            return None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None  # the caller reports that the file is not sealed
    if metadata[SEALED] != VERSION:
        raise DamagedFileError(
            path,
            f"has the format {metadata[SEALED]}, which this version of the program cannot open",
        )
    try:
        header = Header(
            key=str(metadata[KEY]),
            party=str(metadata[PARTY]),
            salt=bytes.fromhex(metadata[SALT]),
            check=bytes.fromhex(metadata[CHECK]),
            text=int(metadata[TEXT_BYTES]),
            sealed=int(content[SEALED]["shape"][0]),
            raw=first + text,
        )
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedFileError(
            path, f"is damaged: a field of its header is missing or not valid ({error})"
        ) from None
    size = path.stat().st_size - len(header.raw)
    whole = header.sealed == size and 0 <= header.text <= min(LONGEST_TEXT, size - 2 * TAG)
    if not whole:
        raise DamagedFileError(
            path, "is damaged: its length is not the one that its header declares"
        )
    return header


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise DamagedFileError(path, "is missing") from None
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})") from None


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise DamagedFileError(path, "is damaged: it is shorter than its header declares")
    return data
