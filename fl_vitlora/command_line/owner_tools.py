"""Commands for the owner of the images: draw a new key, and write storage keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_vitlora import config
from fl_vitlora.errors import UserError


def rotate_key(experiment: config.Config, places: Sequence[Path]) -> None:
    """Draws a new secret for the key ring and encrypts shards again under the new secret.

    Args:
        experiment: The settings; `encryption.key_file` names the key ring.
        places: The paths of shards, or of folders of shards.
    """
    from fl_vitlora.experiment import owner_keys

    name, shards = owner_keys.rotate_key(experiment, places)
    print(f"encrypted again under key {name}: {len(shards)} shards")


def storage_keys(experiment: config.Config, places: Sequence[Path]) -> None:
    """Writes the storage keys of shards to the folder `out`, one file for each party.

    Args:
        experiment: The settings; `out` names the folder for the key files.
        places: The paths of shards, or of folders of shards.

    Raises:
        UserError: If the setting `out` is missing.
    """
    from fl_vitlora.experiment import owner_keys

    if experiment.out is None:
        raise UserError("--storage-keys needs a folder to write to: --out FOLDER")
    files = owner_keys.hand_out_keys(experiment, places, Path(experiment.out))
    print(f"storage keys in {experiment.out}: {', '.join(file.name for file in files)}")
