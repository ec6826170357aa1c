"""Storage keys, which only encrypt ("seal") and decrypt files on disk.

A storage key is derived from a secret of the owner's key ring, or from a passphrase. Nobody can
compute the secret from the storage key. So a person with a storage key can open the files, but
learns nothing about the keys that encrypt the images in the files. A party is the owner of a file,
such as "client 3". A root key is a storage key from which the keys of all parties are derived:

    root of a ring secret  = HKDF-SHA256(secret, "storage")
    root of a passphrase   = scrypt(passphrase, salt), n = 2^17, r = 8, p = 1
    key of a party         = HKDF-SHA256(root, "party/" and the party's name)

The name of a root key is the id of the secret, or "passphrase/" and the salt. A root key opens the
files of all parties. Only the owner has a root key, but in a simulation it is also in the memory of
the workers. A deployed node gets only the key of its own party, in a file of one line. The line
contains the name of the root key, the party's key in 64 hexadecimal digits, and the name of the
party.
"""

from __future__ import annotations

import functools
import getpass
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_vitlora.encryption.keys import SECRET_BYTES, KeyRing, derive_key, key_id
from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import PRIVATE, WriteError, write_atomically

PASSPHRASE = "FL_VITLORA_PASSPHRASE"  # the environment variable with the passphrase
BY_PASSPHRASE = "passphrase/"  # prefix of the name of a root derived from a passphrase
SALT_BYTES = 16
SCRYPT = {"n": 2**17, "r": 8, "p": 1}  # 128 MiB and a second for each guess of a passphrase


@dataclass(frozen=True)
class StorageKey:
    """A root storage key, from which the keys of all parties are derived.

    Attributes:
        name: The name of the key. The name reveals nothing about the key. Every file that the key
            seals contains this name unencrypted.
        root: The key, 32 bytes. The root key is never printed.
    """

    name: str
    root: bytes = field(repr=False)

    def of_party(self, party: str) -> bytes:
        """Derives the key with which the files of one party are sealed, 32 bytes."""
        return derive_key(self.root, f"party/{party}")


@dataclass(frozen=True)
class PartyKey:
    """The storage key of one party, which seals only the files of this party.

    Attributes:
        name: Name of the root key from which this key was derived.
        party: The party, for example "client 3".
        key: The key of 32 bytes; it is never printed.
    """

    name: str
    party: str
    key: bytes = field(repr=False)

    def of_party(self, party: str) -> bytes:
        """Returns the key of 32 bytes, after a check of the party.

        Raises:
            ValueError: If `party` is not the party of this key.
        """
        if party != self.party:
            raise ValueError(f"the storage key of {self.party} cannot seal files of {party}")
        return self.key


@dataclass(frozen=True, kw_only=True)
class StorageKeys:
    """All storage keys with which a process can open files.

    Attributes:
        roots: The root keys by their names.
        parties: The keys of single parties. A storage key is found by the pair of the root key's
            name and the party's name.
        source: The place from which the keys were read, for error messages.
    """

    roots: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    parties: Mapping[tuple[str, str], bytes] = field(default_factory=dict, repr=False)
    source: str = ""

    def can_open(self, name: str, party: str) -> bool:
        """Returns True if a party's files under the root key `name` can be opened.

        A file whose root key comes from a passphrase counts as one that can be opened, because the
        user can be asked for the passphrase.
        """
        known = name in self.roots or (name, party) in self.parties
        return known or name.startswith(BY_PASSPHRASE)

    def find(self, name: str, party: str, path: Path) -> bytes:
        """Returns the key of a party's file; asks the user if the key needs a passphrase.

        Args:
            name: The name of the root key.
            party: The name of the party that the file belongs to.
            path: The path of the file, for error messages.

        Raises:
            UserError: When none of these keys opens the file.
        """
        if (name, party) in self.parties:
            return self.parties[name, party]
        if name in self.roots:
            return StorageKey(name, self.roots[name]).of_party(party)
        if name.startswith(BY_PASSPHRASE):
            return root_of_passphrase(name, f"{path} is sealed under a passphrase").of_party(party)
        others = ", ".join([*self.roots, *(f"{n} for {p}" for n, p in self.parties)])
        has = f"{self.source} has only {others or 'none'}" if self.source else "no key was given"
        raise UserError(
            f"{path} is sealed under storage key {name} of {party}, but {has}; name the file of "
            "the key ring that has this key, --set encryption.key_file=FILE, or, on a deployed "
            "node, the file of the node's storage-key"
        )

    def only(self, names: Iterable[str]) -> StorageKeys:
        """Returns the keys that belong to the given root keys; unknown names are left out."""
        names = set(names)
        wanted = {name: self.roots[name] for name in names if name in self.roots}
        for name in names:
            if name.startswith(BY_PASSPHRASE) and name not in wanted:
                wanted[name] = root_of_passphrase(name, "this run is sealed").root
        parties = {pair: key for pair, key in self.parties.items() if pair[0] in names}
        return StorageKeys(roots=wanted, parties=parties, source=self.source)

    def join(self, others: StorageKeys) -> StorageKeys:
        """Returns these keys and other keys together."""
        return StorageKeys(
            roots={**self.roots, **others.roots},
            parties={**self.parties, **others.parties},
            source=" and ".join(filter(None, (self.source, others.source))),
        )


def of_secret(secret: bytes) -> StorageKey:
    """Derives the root storage key of a secret; the key does not reveal the secret."""
    return StorageKey(key_id(secret), derive_key(secret, "storage"))


def of_ring(ring: KeyRing) -> StorageKeys:
    """Derives the root storage keys of all secrets of a key ring."""
    keys = [of_secret(secret) for secret in ring.secrets]
    roots = {key.name: key.root for key in keys}
    return StorageKeys(roots=roots, source=f"key ring {ring.path}")


def of_new_passphrase() -> StorageKey:
    """Derives a root storage key from the passphrase and a new random salt.

    Raises:
        UserError: When the user gives no passphrase.
    """
    name = BY_PASSPHRASE + secrets.token_hex(SALT_BYTES)
    return root_of_passphrase(name, "encryption.at_rest passphrase")


def root_of_passphrase(name: str, why: str) -> StorageKey:
    """Derives a root storage key from the passphrase and the salt in the key's name.

    Args:
        name: The name of the root key: "passphrase/" and the salt in 32 hexadecimal digits.
        why: The setting or file that needs the passphrase, for error messages.

    Raises:
        UserError: When there is no passphrase, or the name contains no salt.
    """
    try:
        salt = bytes.fromhex(name.removeprefix(BY_PASSPHRASE))
    except ValueError:
        salt = b""
    if len(salt) != SALT_BYTES:
        raise UserError(
            f"{why}: the salt in the file's header is damaged; replace the file by an intact copy"
        )
    return StorageKey(name, _stretched(passphrase(why), salt))


def passphrase(why: str) -> str:
    """Returns the passphrase from the environment, or asks for it at a terminal.

    Raises:
        UserError: When the user gives no passphrase.
    """
    given = os.environ.get(PASSPHRASE) or _asked()
    if not given:
        raise UserError(
            f"{why}: no passphrase was given; set the environment variable {PASSPHRASE}"
        )
    return given


@functools.cache
def _asked() -> str:
    return getpass.getpass("passphrase of the shards: ") if sys.stdin.isatty() else ""


@functools.lru_cache(maxsize=8)
def _stretched(given: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=SECRET_BYTES, **SCRYPT).derive(given.encode())


def write_party_key(path: Path, name: str, party: str, key: bytes) -> None:
    """Writes the key of one party's files to a file that only the owner can read.

    Raises:
        UserError: When the file cannot be written.
    """
    try:
        write_atomically(path, f"{name} {key.hex()} {party}\n", mode=PRIVATE)
    except WriteError as error:
        raise UserError(f"storage key {error}") from None


def open_all_party_keys(path: Path) -> StorageKeys:
    """Reads a file of storage keys, or all such files of a folder.

    Raises:
        UserError: When a file of the folder has no storage keys, or there is no file.
    """
    if not path.is_dir():
        return open_party_keys(path)
    found = [open_party_keys(file) for file in sorted(path.glob("*.key"))]
    if not found:
        raise UserError(f"storage keys {path}: expected files such as client-00003.key, found none")
    parties = {pair: key for keys in found for pair, key in keys.parties.items()}
    return StorageKeys(parties=parties, source=f"storage keys {path}")


def open_party_keys(path: Path) -> StorageKeys:
    """Reads a file of storage keys of single parties, one key per line.

    Raises:
        UserError: When the file does not exist, other users can read it, or its content is not a
            list of storage keys.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"storage key {path}: expected a file, got a folder or a device")
    try:
        lines = [line.split(maxsplit=2) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {(name, party): bytes.fromhex(key) for name, key, party in lines}
    except FileNotFoundError:
        raise UserError(f"storage key {path}: no such file") from None
    except (ValueError, OSError):
        found = {}
    if not found or any(len(key) != SECRET_BYTES for key in found.values()):
        raise UserError(
            f"storage key {path}: expected in every line a name, {2 * SECRET_BYTES} hexadecimal "
            "digits and a party, as --storage-keys writes them"
        )
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"storage key {path} can be read by other users; run: chmod 600 {path}")
    return StorageKeys(parties=found, source=f"storage key {path}")
