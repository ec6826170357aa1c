"""Manages keys of owners: writes storage keys and identity keys, or draws a new secret.

A shard is a file with the encrypted images of one party. The storage key of a shard opens the file;
another key, which is derived from a secret of the owner, decrypts the images.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.data import owner, reencryption
from fl_vitlora.data.shards import VALIDATION_SHARD
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.holder import TEST
from fl_vitlora.encryption.identities import draw_identity, line, write_private
from fl_vitlora.encryption.keys import KeyRing, key_id, open_or_create_ring, open_ring
from fl_vitlora.encryption.storage_keys import write_party_key
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.experiment.shard_reuse import store_of
from fl_vitlora.models.reading import READER_FILE, adapted_to
from fl_vitlora.reporting.run_folder import begun_in, find_run, is_under_way, with_ring_of
from fl_vitlora.storage.files import WriteError, make_folder, make_private_folder


def hand_out_keys(config: Config, places: Sequence[Path], folder: Path) -> list[Path]:
    """Writes a file with a storage key for each party that has shards.

    A storage key opens only the files of its party.

    Args:
        config: The configuration of the experiment, with the path of the key ring.
        places: The paths of shards, or of folders of shards.
        folder: The folder for the key files. If the folder does not exist, this function makes the
            folder. Only the owner of the folder can then read the folder.

    Returns:
        A list of the paths of the key files, such as `client-00003.key`.

    Raises:
        UserError: If there is no shard, if a shard is not sealed, or if the key ring does not have
            the key of a shard.
    """
    keys, parties = storage_keys(config), {}
    for path in (path for place in places for path in owner.find_shards(place)):
        under = sealed_under(path)
        if under is None:
            raise UserError(
                f"{path} is not sealed (encrypted on the disk), so this shard has no storage key"
            )
        name, party = under
        file = folder / f"{_owner_in(path.name)}.key"
        parties[file] = name, party, keys.find(name, party, path)
    try:
        make_folder(folder.absolute().parent)
        make_private_folder(folder)
    except WriteError as error:
        raise UserError(f"storage keys: {error}") from None
    for file, (name, party, key) in parties.items():
        write_party_key(file, name, party, key)
    return list(parties)


def write_identity(client: int, path: Path) -> str:
    """Writes a new private identity key to a file, and returns the line with its public key.

    Raises:
        UserError: If the file exists, or cannot be written.
    """
    made = draw_identity(client)
    write_private(path, [made])
    return line(client, made.public)


def _owner_in(name: str) -> str:
    """Returns the part of a shard's file name that all shards of the same party share.

    Example:
        >>> _owner_in("client-00003-test.safetensors"), _owner_in("validation.safetensors")
        ('client-00003', 'test')
    """
    if name == VALIDATION_SHARD:
        return TEST
    return Path(name).stem.removesuffix("-test").removesuffix("-validation")


def new_ring(path: Path) -> str:
    """Makes a key ring with one new secret, and returns the id of the secret.

    Raises:
        UserError: If a file exists at this path, or the key ring cannot be written.
    """
    if path.exists():
        raise UserError(
            f"key ring {path} exists; it is not replaced, because its secrets may be in use"
        )
    return key_id(open_or_create_ring(path).current)


def ids_of_ring(path: Path) -> list[str]:
    """Returns the ids of all secrets of a key ring, the oldest first.

    Raises:
        UserError: If the key ring cannot be read.
    """
    return [key_id(secret) for secret in open_ring(path).secrets]


def rotate_key(config: Config, places: Sequence[Path]) -> tuple[str, list[Path]]:
    """Draws a new secret and encrypts shards with it; the key ring keeps the old secrets.

    Args:
        config: The configuration of the experiment, with the path of the key ring.
        places: The paths of shards, or of folders of shards.

    Returns:
        A pair: the id of the new secret, and the paths of the shards.

    Raises:
        UserError: If there is no shard, if the key ring does not open a shard, if a patch embedding
            in the same folder is adapted to the old key, or if a run that uses the shards has not
            ended. If this error is raised, no file has been changed.
    """
    named = [path for place in places for path in owner.find_shards(place)]
    shards = list({path.resolve(): path for path in named}.values())  # no shard is encrypted twice
    owner.check_all_described(places, shards)
    for folder in {path.parent for path in shards}:
        if is_under_way(folder.parent):
            raise UserError(
                f"{folder.parent} contains a run that has not ended and needs its present key; "
                f"finish the run first with --resume {shlex.quote(str(folder.parent))}, or move "
                "the shards to another folder"
            )
        if adapted_to(folder / READER_FILE):
            raise UserError(
                f"{folder / READER_FILE} is a patch embedding that is adapted to the key of these "
                "shards, so the model could not read shards under a new secret; run the experiment "
                "again instead"
            )
    config = with_ring_of(config, [begun_in(path.parent.parent) for path in shards])
    ring = open_ring(Path(config.encryption.key_file))
    reencryption.holders_of(shards, ring)
    ring = ring.rotated()
    changed = reencryption.encrypt_anew(shards, ring)
    for run in {path.parent.parent for path in shards}:
        _forget_kept(config, run, ring)
    return key_id(ring.current), changed


def _forget_kept(config: Config, run: Path, ring: KeyRing) -> None:
    """Removes the copies in shard stores that are encrypted with an old secret of a key ring.

    Args:
        config: The configuration with which the key is rotated.
        run: The run folder of shards that were encrypted again.
        ring: The key ring after the rotation.
    """
    old = [key_id(secret) for secret in ring.secrets[:-1]]
    settings = [config.data]
    with contextlib.suppress(UserError):  # the folder has shards, but no run of this version
        settings.append(find_run(run)[0].data)
    for data in settings:
        if store := store_of(data, run):
            store.forget(old)
