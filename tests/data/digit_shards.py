"""Shards of thirty digits, for the tests of the owner and of the re-encryption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fl_vitlora.config import load
from fl_vitlora.data.owner import (
    key_holder,
    write_encrypted_shards,
)
from fl_vitlora.data.shards import (
    TEST_SHARD,
    VALIDATION_SHARD,
    client_shard,
)
from fl_vitlora.data.sources import Images
from fl_vitlora.encryption.holder import KeyHolder

SECRET = bytes(range(32))
PARTS = [np.arange(0, 20), np.arange(20, 30)]
TEST_PARTS = [np.arange(0, 12), np.arange(12, 30)]
VALIDATION = [np.array([27, 8]), np.arange(13, 18)]


def holder_of(secret: bytes = SECRET, size: tuple[int, int] = (16, 16), **given: Any) -> KeyHolder:
    config = load(None, {f"encryption.{name}": value for name, value in given.items()})
    return key_holder(config, patch_size=4, image_shape=(3, *size), secret=secret)


def write(
    folder: Path, digits: tuple[Images, Images], holder: KeyHolder, *, apart: bool
) -> dict[str, tuple[Tensor, str, Any]]:
    """Writes two clients' shards; returns the plain images, party and part of each file."""
    train, test = digits
    write_encrypted_shards(
        folder,
        train=train,
        test=test,
        parts=PARTS,
        test_parts=TEST_PARTS if apart else [],
        validation=VALIDATION if apart else [np.concatenate(VALIDATION)],
        holder=holder,
        metadata={"a": "b"},
    )
    size = holder.cipher.image_shape[1:]
    content = {
        client_shard(c): (train.read(part, *size), f"client {c}", "train")
        for c, part in enumerate(PARTS)
    }
    if not apart:
        held = train.read(np.concatenate(VALIDATION), *size)
        return {
            **content,
            TEST_SHARD: (test.read(np.arange(30), *size), "test", "test"),
            VALIDATION_SHARD: (held, "test", "validation"),
        }
    own = {
        client_shard(c, "test"): (test.read(part, *size), f"client {c}", "test")
        for c, part in enumerate(TEST_PARTS)
    }
    held_by = {
        client_shard(c, "validation"): (train.read(part, *size), f"client {c}", "validation")
        for c, part in enumerate(VALIDATION)
    }
    return content | own | held_by
