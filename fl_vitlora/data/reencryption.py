"""Encrypts shards again after the owner has drawn a new secret (has rotated the key).

A shard is a file with the encrypted images of one party. The key ring keeps the old secrets. Each
shard is decrypted with the secret that its metadata name, and then encrypted with the current
secret.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fl_vitlora.data.descriptions import read_description
from fl_vitlora.data.shards import read_shard, write_shard
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.holder import KeyHolder, Part
from fl_vitlora.encryption.keys import KeyRing, key_id
from fl_vitlora.encryption.storage_keys import (
    BY_PASSPHRASE,
    StorageKey,
    of_ring,
    of_secret,
    root_of_passphrase,
)
from fl_vitlora.errors import UserError


def holders_of(shards: Iterable[Path], ring: KeyRing) -> dict[Path, KeyHolder]:
    """Finds the key with which the images of each shard are encrypted.

    Args:
        shards: The paths of the shards.
        ring: The key ring to search.

    Returns:
        A dictionary from the path of each shard to its key holder. If the images are plain and only
        the file is encrypted ("sealed"), the cipher of the key holder has no steps.

    Raises:
        UserError: When a shard is neither encrypted nor sealed, when it is damaged, or when its key
            is not in the ring.
    """
    return {path: _holder_of(path, ring) for path in shards}


def encrypt_anew(shards: Iterable[Path], ring: KeyRing) -> list[Path]:
    """Decrypts shards and encrypts them again with the current secret of a key ring.

    A shard may be encrypted with any secret of the ring. A file that was sealed with a secret of
    the ring is sealed again with the current secret. A file that was sealed with a passphrase keeps
    the passphrase. All files are verified before the first file is changed, and each file is
    replaced as a whole. If the function is interrupted, every shard is still encrypted with a
    secret of the ring, and its metadata name this secret.

    Args:
        shards: The paths of the shards.
        ring: The key ring, with the current secret and the old secrets.

    Returns:
        The paths of the files that the function has written again. Files that already use the
        current secret are not written again.

    Raises:
        UserError: When a shard is neither encrypted nor sealed, when it is damaged, or when its key
            is not in the ring. If this error is raised, no file has been changed.
    """
    holders, current = holders_of(shards, ring), key_id(ring.current)
    keys = of_ring(ring)
    changed = []
    for path, holder in holders.items():
        new, storage = replace(holder, secret=ring.current), _storage_anew(path, ring)
        encrypted = bool(holder.cipher.steps)
        if holder.key_id == current and not _is_under_another(path, storage):
            continue
        shard, metadata = read_shard(path, keys)
        if encrypted:
            party, part = metadata["party"], _part(metadata)
            plain = holder.decrypt(shard.images, party, part)
            shard = replace(shard, images=new.encrypt(plain, party, part))
            metadata = {**metadata, "key_id": current}
        write_shard(path, shard, metadata, storage)
        changed.append(path)
    return changed


def _is_under_another(path: Path, storage: StorageKey | None) -> bool:
    """Returns True if a file is sealed with another storage key than `storage`."""
    under = sealed_under(path)
    return under is not None and storage is not None and under[0] != storage.name


def _storage_anew(path: Path, ring: KeyRing) -> StorageKey | None:
    """Returns the storage key for writing a shard again, or None if the shard is not sealed.

    A shard that was sealed with a passphrase keeps the passphrase; any other sealed shard gets the
    storage key of the ring's current secret.
    """
    under = sealed_under(path)
    if under is None:
        return None
    if under[0].startswith(BY_PASSPHRASE):
        return root_of_passphrase(under[0], f"{path} is sealed under a passphrase")
    return of_secret(ring.current)


def _holder_of(path: Path, ring: KeyRing) -> KeyHolder:
    """Returns the key holder of a shard; the metadata of the shard contain the id of its key."""
    shard, metadata = read_shard(path, of_ring(ring))
    under, name = sealed_under(path), metadata.get("key_id", "")
    if not name and (under is None or under[0].startswith(BY_PASSPHRASE)):
        raise UserError(f"shard {path} is not encrypted under a key ring")
    described = read_description(path, metadata, tuple(shard.images.shape[1:]))
    cipher = described.cipher
    if cipher.steps and not name:
        raise UserError(
            f"shard {path}: the field key_id is missing in the metadata; write the shard again"
        )
    try:
        secret = ring.find(name or (under or ("",))[0])
    except UserError as error:
        raise UserError(f"shard {path}: {error}") from None
    return KeyHolder(cipher=cipher, secret=secret, scope=described.scope, seed=described.seed)


def _part(metadata: Mapping[str, str]) -> Part:
    """Returns the use of a shard's images, or "train" if the metadata state no known use."""
    part = metadata["part"]
    return typing.cast(Part, part) if part in typing.get_args(Part) else "train"
