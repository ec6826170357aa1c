"""An owner's key ring, and the encrypted shards of two clients in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.config import Config, DataConfig, load
from fl_vitlora.data import sources
from fl_vitlora.data.images import Indices
from fl_vitlora.data.owner import key_holder, write_encrypted_shards
from fl_vitlora.encryption.keys import open_or_create_ring, open_ring
from fl_vitlora.encryption.storage_keys import StorageKeys, of_ring
from fl_vitlora.experiment.preparation import prepare_storage


def prepare(
    tmp_path: Path,
    settings: dict[str, Any],
    *,
    test_parts: Sequence[Indices] = (),
    validation: Sequence[Indices] = (),
) -> Config:
    """Writes the shards of two clients under a new ring."""
    config = load(None, {"encryption.key_file": str(tmp_path / "owner.key"), **settings})
    secret = open_or_create_ring(tmp_path / "owner.key").current
    train, test = sources.load(DataConfig(limit=20))
    (tmp_path / "run" / "shards").mkdir(parents=True)
    write_encrypted_shards(
        tmp_path / "run" / "shards",
        train=train,
        test=test,
        parts=[np.arange(0, 12), np.arange(12, 20)],
        test_parts=test_parts,
        validation=validation,
        holder=key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret),
        metadata={},
        storage=prepare_storage(config),
    )
    return config


def keys(folder: Path) -> StorageKeys:
    """Finds what opens the shards of a run."""
    return of_ring(open_ring(folder.parent.parent / "owner.key"))
