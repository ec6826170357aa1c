"""Commands for owners: encrypt shards under a new secret; write storage and identity keys.

A shard is the file with the encrypted images of one client. A storage key opens the file, but does
not decrypt the images in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_vitlora import config
from fl_vitlora.errors import UserError


def rotate_key(experiment: config.Config, places: Sequence[Path]) -> None:
    """Draws a new secret for the key ring and encrypts shards again under the new secret.

    Args:
        experiment: The settings; `encryption.key_file` names the key ring, a file of secrets.
        places: The paths of shards, or of folders of shards.
    """
    from fl_vitlora.experiment import owner_keys

    name, shards = owner_keys.rotate_key(experiment, places)
    print(f"encrypted again under the new key {name}: {len(shards)} shards")


def storage_keys(experiment: config.Config, places: Sequence[Path]) -> None:
    """Writes the storage keys of shards to the folder `out`, one file for each party.

    A party is a client, or the server, to which a shard belongs.

    Args:
        experiment: The settings; `out` names the folder for the key files.
        places: The paths of shards, or of folders of shards.

    Raises:
        UserError: If the setting `out` is missing.
    """
    from fl_vitlora.experiment import owner_keys

    if experiment.out is None:
        raise UserError("--storage-keys needs a folder to which it writes the keys: --out FOLDER")
    files = owner_keys.hand_out_keys(experiment, places, Path(experiment.out))
    print(f"storage keys written to {experiment.out}: {', '.join(file.name for file in files)}")


def new_identity(experiment: config.Config, client: int) -> None:
    """Writes a new identity key of a client to the file `out`, and prints its public key.

    Args:
        experiment: The settings; `out` names the file.
        client: The number of the client.

    Raises:
        UserError: If the setting `out` is missing, or the file exists or cannot be written.
    """
    from fl_vitlora.experiment import owner_keys

    if experiment.out is None or client < 0:
        raise UserError(
            "--new-identity needs the number of a client, from 0, and a file to which it writes "
            "the key: --new-identity 3 --out FILE"
        )
    print(owner_keys.write_identity(client, Path(experiment.out)), end="")
