"""Manages keys of owners: writes storage keys and identity keys, or draws a new secret.

A shard is a file with the encrypted images of one party. The storage key of a shard opens the file;
another key, which is derived from a secret of the owner, decrypts the images.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.data import owner, reencryption
from fl_vitlora.data.shards import VALIDATION_SHARD
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.client_keys import ClientKey, derive_client_key, write_client_key
from fl_vitlora.encryption.holder import TEST, client_party
from fl_vitlora.encryption.identities import draw_identity, line, write_private
from fl_vitlora.encryption.keys import KeyRing, key_id, open_or_create_ring, open_ring
from fl_vitlora.encryption.storage_keys import write_party_key
from fl_vitlora.errors import UserError, shown, unknown
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.experiment.shard_reuse import store_of
from fl_vitlora.models.reading import READER_FILE, adapted_to
from fl_vitlora.reporting.run_folder import CLIENTS, begun_in, find_run, is_under_way, with_ring_of
from fl_vitlora.storage.files import WriteError, make_folder, make_private_folder

COMMON = (
    "all clients share one key, so a file with it would open the images of every client; "
    "encrypt with encryption.scope client to give each client a key of its own"
)
NOT_ALONE = {  # why a key of one client cannot be exported, by the scope of the keys
    "shared": COMMON,
    "block": COMMON,
    "image": "every image has its own key, so no client has a key that could be exported, and a "
    "node needs none: no model is adapted to such keys",
}


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


def export_client(config: Config, client: int, path: Path, secret: str | None = None) -> ClientKey:
    """Writes the key of one client to a new file, for the node of this client.

    Args:
        config: The configuration of the experiment, with the path of the key ring.
        client: The number of the client.
        path: The new file.
        secret: The id of the secret in the key ring; None for the newest secret.

    Returns:
        The key.

    Raises:
        UserError: If clients have no keys of their own, there is no such client or secret, or the
            file exists or cannot be written.
    """
    encryption = config.encryption
    if not encryption.steps:
        raise UserError("encryption.steps is empty: the images are plain, so no client has a key")
    if encryption.scope != "client":
        raise UserError(f"encryption.scope {encryption.scope}: {NOT_ALONE[encryption.scope]}")
    if not 0 <= client < config.clients:
        raise UserError(
            f"client {client}: the experiment has {config.clients} clients; expected a number from "
            f"0 to {config.clients - 1}"
        )
    ring = open_ring(Path(encryption.key_file))
    known = {key_id(one): one for one in ring.secrets}
    if secret is not None and secret not in known:
        raise unknown(f"id of a secret of the key ring {ring.path}", secret, known)
    chosen = ring.current if secret is None else known[secret]
    key = derive_client_key(chosen, client_party(client), config.seed)
    write_client_key(path, key)
    return key


def number_of(word: str, folder: Path) -> int:
    """Returns the number of a client, which is given by its number or by its name.

    Args:
        word: The number, or a name in the file `clients.json`. ``number:12`` is always a number,
            and ``name:12`` always a name.
        folder: The folder that may have this file, such as a run folder.

    Raises:
        UserError: If no client or several clients have this name, or if the word is a number and
            also the name of a client with another number.
    """
    form, _, rest = word.partition(":")
    if form == "number":
        if not rest.isdecimal():
            raise UserError(f"client {shown(word)}: expected a number behind number:, from 0")
        return int(rest)
    name = rest if form == "name" else word
    names, number = client_names(folder / CLIENTS), int(name) if word.isdecimal() else None
    if names is None:
        if number is not None:
            return number
        raise UserError(
            f"client {shown(name)}: expected the number of a client, from 0; names are known only "
            f"if {folder} has a {CLIENTS}"
        )
    found = [place for place, known in enumerate(names) if known == name]
    if len(found) > 1:
        raise UserError(
            f"client {name}: this is the name of the clients {', '.join(map(str, found))}; write "
            f"number:{found[0]} for the first of them"
        )
    if number is not None and found not in ([], [number]):
        raise UserError(
            f"client {name}: this is a number, and also the name of client {found[0]}; write "
            f"number:{name} or name:{name}"
        )
    if number is None and not found:
        raise unknown("client", name, names)
    return found[0] if number is None else number


def client_names(path: Path) -> list[str] | None:
    """Returns the names in a file `clients.json`, in the order of the clients.

    Args:
        path: The path of the file.

    Returns:
        The names, which are texts or whole numbers in the file; None if there is no such file.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, list) or not all(type(name) in (str, int) for name in found):
        raise UserError(
            f"{path} cannot be read: expected a list of names, which are texts or whole numbers"
        )
    return [str(name) for name in found]


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
    """Removes the shards in shard stores that are encrypted with an old secret of a key ring.

    Args:
        config: The configuration with which the key is rotated.
        run: The run folder whose shards were encrypted anew with the new secret.
        ring: The key ring after the rotation.
    """
    old = [key_id(secret) for secret in ring.secrets[:-1]]
    settings = [config.data]
    with contextlib.suppress(UserError):  # the folder has shards, but no run of this version
        settings.append(find_run(run)[0].data)
    for data in settings:
        if store := store_of(data, run):
            store.forget(old)
