"""Keys of shards that exist: the owner hands out storage keys, or draws a new secret."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.data import owner, reencryption
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.keys import key_id, open_ring
from fl_vitlora.encryption.storage_keys import write_party_key
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.models.reading import READER_FILE, adapted_to
from fl_vitlora.reporting.run_folder import begun_in, is_under_way, with_ring_of
from fl_vitlora.storage.files import WriteError, make_folder, make_private_folder


def hand_out_keys(config: Config, places: Sequence[Path], folder: Path) -> list[Path]:
    """Writes for each party that has shards the storage key that opens its files and no others.

    Args:
        config: The experiment; it names the key ring.
        places: Shards, or folders of them.
        folder: The folder of the files; it is made if it is missing, for the owner alone.

    Returns:
        The files, such as `client-00003.key`.

    Raises:
        UserError: When there is no shard, one is in the clear, or its key is not on the ring.
    """
    keys, found = storage_keys(config), {}
    for path in (path for place in places for path in owner.find_shards(place)):
        under = sealed_under(path)
        if under is None:
            raise UserError(f"{path} is not sealed at rest, so that no key opens it")
        name, party = under
        file = folder / f"{path.stem.removesuffix('-test')}.key"
        found[file] = name, party, keys.find(name, party, path)
    try:
        make_folder(folder.absolute().parent)
        make_private_folder(folder)
    except WriteError as error:
        raise UserError(f"storage keys: {error}") from None
    for file, (name, party, key) in found.items():
        write_party_key(file, name, party, key)
    return list(found)


def rotate_key(config: Config, places: Sequence[Path]) -> tuple[str, list[Path]]:
    """Draws a new secret and encrypts shards under it; the key ring keeps the old ones.

    Args:
        config: The experiment; it names the key ring.
        places: Shards, or folders of them.

    Returns:
        The new key id, and the shards.

    Raises:
        UserError: When there is no shard, one of them cannot be opened with the ring, a model
            beside them is adapted to the old key, or a run with them is not at its end; before
            anything is changed.
    """
    found = [path for place in places for path in owner.find_shards(place)]
    shards = list({path.resolve(): path for path in found}.values())  # each once, however named
    owner.check_all_described(places, shards)
    for folder in {path.parent for path in shards}:
        if is_under_way(folder.parent):
            raise UserError(
                f"{folder.parent} is not at its end, and a run goes on with its key only; finish "
                f"it first, --resume {shlex.quote(str(folder.parent))}, or move its shards "
                "elsewhere"
            )
        if adapted_to(folder / READER_FILE):
            raise UserError(
                f"{folder / READER_FILE} is adapted to the key of these shards and would not read "
                "them any more; run the experiment again with the new secret instead"
            )
    config = with_ring_of(config, [begun_in(path.parent.parent) for path in shards])
    ring = open_ring(Path(config.encryption.key_file))
    reencryption.holders_of(shards, ring)
    ring = ring.rotated()
    return key_id(ring.current), reencryption.encrypt_anew(shards, ring)
