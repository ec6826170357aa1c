"""The data owner's side: plain images go in, encrypted shards come out.

This is the only place where plain images and a key meet. What it writes is all that workers and
server will ever see: ciphertext and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fl_vitlora.data.shards import TEST_SHARD, Shard, client_shard, write_shard
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.cipher import Cipher, CipherKey


def write_encrypted_shards(
    folder: Path,
    *,
    train: Images,
    test: Images,
    parts: Sequence[Indices],
    cipher: Cipher,
    key: CipherKey,
    metadata: dict[str, str],
) -> None:
    """Encrypts the shard of every client and the test images, and stores them.

    Args:
        folder: Where to; it must exist.
        train: Training images.
        test: Test images.
        parts: Positions of each client's training images.
        cipher: Steps, block size and image shape.
        key: The owners' common key; it is not stored.
        metadata: What may be written beside the images: no secret.
    """
    for client, part in enumerate(parts):
        shard = _encrypt(train, part, cipher, key)
        write_shard(folder / client_shard(client), shard, {**metadata, "client": str(client)})
    write_shard(folder / TEST_SHARD, _encrypt(test, np.arange(len(test)), cipher, key), metadata)


def _encrypt(images: Images, part: Indices, cipher: Cipher, key: CipherKey) -> Shard:
    plain = images.read(part, cipher.image_shape[-1])
    return Shard(
        images=cipher.encrypt(plain, key),
        labels=torch.from_numpy(images.labels[part]),
    )
