"""Finds and checks shards that owners have made elsewhere, each with a key ring of its own.

No plain image and no key of the images is needed. All shards are read to their end, so that damage
is found before a run begins. The classes are matched by their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.data.class_names import disagreement, renumbered
from fl_vitlora.data.descriptions import Description, read_description
from fl_vitlora.data.images import Indices
from fl_vitlora.data.shard_pieces import open_pieces
from fl_vitlora.data.shards import (
    OWN_SHARD,
    TEST_SHARD,
    VALIDATION_SHARD,
    class_names_of,
    client_shard,
    owner_of,
)
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.holder import Part
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError

COMMON = (TEST_SHARD, VALIDATION_SHARD)
ALIKE = ("steps", "scope", "block_size", "fixed_blocks", "fixed_entries", "seed")
ONE_KEY = ("shared", "block")  # scopes in which all parties have one secret


@dataclass(frozen=True, kw_only=True)
class GivenShard:
    """A shard that its owner has made elsewhere.

    Attributes:
        path: The path of the file.
        described: The description of how the images are encrypted.
        key: The id of the secret with which the images are encrypted; "" if they are plain.
        class_names: The names of the classes, in the order of this shard's labels.
        labels: The label of each image, int64 (n,).
        seal: The name of the root storage key that seals the file; None if it is not sealed.
        digest: A digest of the whole content, which does not depend on how the file is sealed.
    """

    path: Path
    described: Description
    key: str
    class_names: tuple[str, ...]
    labels: Indices
    seal: str | None
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the values on which all shards of a run must agree, by their names."""
        cipher = self.described.cipher
        return {
            "steps": tuple(cipher.steps),
            "scope": self.described.scope,
            "block_size": cipher.block_size,
            "fixed_blocks": cipher.fixed_blocks,
            "fixed_entries": cipher.fixed_entries,
            "seed": self.described.seed,
            "image_size": tuple(cipher.image_shape[1:]),
        }


@dataclass(frozen=True, kw_only=True)
class GivenShards:
    """All shards of a run, made elsewhere.

    Attributes:
        folder: The folder in which the shards were found.
        shards: The shards by their file names.
        clients: The number of clients.
        class_names: The names of the classes, in the order of the run's labels.
    """

    folder: Path
    shards: Mapping[str, GivenShard]
    clients: int
    class_names: tuple[str, ...]

    @property
    def first(self) -> GivenShard:
        """Returns the training shard of client 0."""
        return self.shards[client_shard(0)]

    @property
    def keys(self) -> dict[str, str]:
        """Returns the id of each party's secret, by the name of the party."""
        return {one.described.party: one.key for one in self.shards.values()}

    def has_all(self, part: Part) -> bool:
        """Returns True if every client has a shard of its own for the use `part`."""
        return not self.lacking(part)

    def lacking(self, part: Part) -> list[str]:
        """Returns the file names of the clients' shards for a use, of those that are missing."""
        names = (client_shard(client, part) for client in range(self.clients))
        return [name for name in names if name not in self.shards]

    def counts(self) -> Indices:
        """Returns the number of training images, one row per client and one column per class."""
        found = np.zeros((self.clients, len(self.class_names)), dtype=np.int64)
        place = {name: label for label, name in enumerate(self.class_names)}
        for client in range(self.clients):
            one = self.shards[client_shard(client)]
            for label, number in zip(*np.unique(one.labels, return_counts=True), strict=True):
                found[client, place[one.class_names[label]]] += number
        return found

    def images(self, part: Part) -> int:
        """Returns the number of all images for a use."""
        return sum(len(s.labels) for s in self.shards.values() if s.described.part == part)

    @property
    def digest(self) -> str:
        """Returns a digest of the content of all shards."""
        return digest_of({name: one.digest for name, one in self.shards.items()})


def digest_of(digests: Mapping[str, str]) -> str:
    """Returns one digest of all shards, from the file name and the digest of each shard."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def find_given(folder: Path, keys: StorageKeys) -> GivenShards:
    """Finds, opens and checks the shards in a folder and in all folders below it.

    Args:
        folder: The folder, for example with a folder for each owner.
        keys: The storage keys that open the files, from one owner or from several.

    Raises:
        UserError: If a shard is missing, damaged, cannot be opened, or does not fit the other
            shards; the message names the file.
    """
    files = _find(folder)
    clients = _count_clients(folder, files)
    shards = {name: read_given(path, keys) for name, path in files.items()}
    first = shards[client_shard(0)]
    for one in shards.values():
        _check_alike(one, first)
    _check_keys(shards)
    leading = shards.get(TEST_SHARD, first)
    for one in shards.values():
        if set(one.class_names) != set(leading.class_names):
            raise UserError(
                f"{one.path} has other classes than {leading.path} "
                f"({disagreement(one.class_names, leading.class_names)}); all owners must encrypt "
                "with the same list of class names: fl-vitlora encrypt --classes FILE"
            )
    return GivenShards(
        folder=folder, shards=shards, clients=clients, class_names=leading.class_names
    )


def _find(folder: Path) -> dict[str, Path]:
    """Finds the files with names of shards, except in hidden folders.

    Raises:
        UserError: If there is no such file, if two files have the same name, or if a name does not
            have the form that this program writes.
    """
    if not folder.is_dir():
        raise UserError(f"data.shards {folder}: expected a folder with shards")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        match = OWN_SHARD.fullmatch(path.name)
        if hidden or (match is None and path.name not in COMMON):
            continue
        if match is not None and path.name != (right := _written(path.name)):
            raise UserError(f"{path}: expected the name {right}")
        if (other := found.setdefault(path.name, path)) is not path:
            raise UserError(
                f"{path} and {other} have the same name; every client has a number of its own "
                "(fl-vitlora encrypt --client K)"
            )
    if not found:
        raise UserError(
            f"data.shards {folder}: expected shards such as {client_shard(0)}, found none"
        )
    return found


def _written(name: str) -> str:
    """Returns the name of a client's shard as this program writes it."""
    match = OWN_SHARD.fullmatch(name)
    if match is None:
        return name
    end = f"-{match[2]}" if match[2] else ""
    return client_shard(int(match[1])).replace(".safetensors", f"{end}.safetensors")


def _count_clients(folder: Path, files: Mapping[str, Path]) -> int:
    """Counts the clients, which must have the numbers from 0 without a gap.

    Raises:
        UserError: If the training shard of a client is missing.
    """
    numbers = {int(match[1]) for name in files if (match := OWN_SHARD.fullmatch(name))}
    clients = max(numbers, default=0) + 1
    for number in range(clients):
        if client_shard(number) not in files:
            known = "" if not numbers else f", which has shards up to client {clients - 1}"
            raise UserError(f"data.shards {folder}: expected {client_shard(number)} there{known}")
    return clients


def read_given(path: Path, keys: StorageKeys) -> GivenShard:
    """Reads a shard to its end, and checks that its file name states its party and part.

    Args:
        path: The path of the shard.
        keys: The storage keys that open the file.

    Raises:
        UserError: If the shard is damaged, cannot be opened, or belongs to another party than its
            name says.
    """
    under, opened = sealed_under(path), open_pieces(path, keys)
    described = read_description(path, opened.metadata, opened.shape)
    if (described.party, described.part) != (expected := owner_of(path.name)):
        raise UserError(
            f"{path} is the {described.part} shard of {described.party}, but its name is that of "
            f"the {expected[1]} shard of {expected[0]}"
        )
    names = class_names_of(opened.metadata, path)
    renumbered(opened.labels, names, names, f"shard {path}")
    if not len(opened):
        raise UserError(f"{path}: expected at least one image, found none")
    digest = hashlib.sha256(json.dumps(sorted(opened.metadata.items())).encode())
    digest.update(opened.labels.numpy().data)
    for piece in opened.pieces:
        digest.update(piece.numpy().reshape(-1).data)
    return GivenShard(
        path=path,
        described=described,
        key=opened.metadata.get("key_id", ""),
        class_names=names,
        labels=opened.labels.numpy(),
        seal=None if under is None else under[0],
        digest=digest.hexdigest(),
    )


def _check_alike(one: GivenShard, first: GivenShard) -> None:
    """Checks that two shards were made with the same settings.

    Raises:
        UserError: If the settings differ, or if only one of the two shards is sealed.
    """
    for (name, value), other in zip(one.settings.items(), first.settings.values(), strict=True):
        if value != other:
            raise UserError(
                f"{one.path} has {name} {shown_value(value)}, but {first.path} has "
                f"{shown_value(other)}; all owners must encrypt with the same settings"
            )
    if (one.seal is None) != (first.seal is None):
        sealed, bare = (first, one) if one.seal is None else (one, first)
        raise UserError(
            f"{bare.path} is not sealed (encrypted on disk), but {sealed.path} is; expected "
            "either all shards or none to be sealed"
        )


def _check_keys(shards: Mapping[str, GivenShard]) -> None:
    """Checks that parties that share a key have the same secret, and that a party has only one.

    Raises:
        UserError: If a shard is encrypted with another secret.
    """
    known: dict[str, GivenShard] = {}
    for one in shards.values():
        together = "" if one.described.scope in ONE_KEY else one.described.party
        other = known.setdefault(together, one)
        if one.key != other.key:
            raise UserError(
                f"{one.path} is encrypted with the key {one.key or 'none'}, but {other.path} with "
                f"{other.key or 'none'}; expected one key"
                + ("" if together else f" with encryption.scope {one.described.scope}")
            )


def shown_value(value: object) -> str:
    """Returns the value of a setting as a user writes it.

    Example:
        >>> shown_value(("flip", "crop")), shown_value(3)
        ('[flip,crop]', '3')
    """
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def digests_in(folder: Path, keys: StorageKeys) -> Iterator[tuple[str, str]]:
    """Yields the name and the digest of each shard in a folder.

    Args:
        folder: The folder of a run's shards.
        keys: The storage keys that open the files.

    Raises:
        UserError: If a shard is damaged or cannot be opened.
    """
    for name in names_in(folder):
        yield name, read_given(folder / name, keys).digest


def names_in(folder: Path) -> list[str]:
    """Returns the names of the shards in the folder of a run's shards, in order."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return [name for name in names if OWN_SHARD.fullmatch(name) or name in COMMON]
