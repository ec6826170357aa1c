"""Shards on disk: the encrypted images and the labels of one holder, in one file.

A file is sealed at rest under a storage key (`encryption.at_rest`), so that without the key it
tells neither images nor labels nor the names of classes; or it is in the clear with a digest
(`sealed`). It says whose it is, what it is for and how its classes are called; all three are
compared when it is opened for a run.

n images, C channels, H × W pixels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.data.class_names import CLASS_NAMES, read_names, renumbered
from fl_vitlora.encryption.at_rest import seal, sealed_under, unseal, unseal_text
from fl_vitlora.encryption.holder import TEST, client_party
from fl_vitlora.encryption.storage_keys import StorageKey, StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import read_sealed, read_sealed_metadata, write_sealed
from fl_vitlora.storage.files import PRIVATE, write_parts

TEST_SHARD = "test.safetensors"
CLIENT_SHARDS = "client-*.safetensors"
OWN_SHARD = re.compile(r"client-(\d+)(-test)?\.safetensors")
NO_KEYS = StorageKeys()


@dataclass(frozen=True)
class Shard:
    """Images as a model sees them, ciphertext where they are encrypted.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: int64 (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def client_shard(client: int) -> str:
    """Names the file of one client.

    Example:
        >>> client_shard(3)
        'client-00003.safetensors'
    """
    return f"client-{client:05d}.safetensors"


def client_test_shard(client: int) -> str:
    """Names the file of a client's own test images.

    Example:
        >>> client_test_shard(3)
        'client-00003-test.safetensors'
    """
    return f"client-{client:05d}-test.safetensors"


def owner_of(name: str) -> tuple[str, str]:
    """Tells whose a shard of this name must be, and whether it is to train or to test with.

    Example:
        >>> owner_of(client_test_shard(3)), owner_of(TEST_SHARD)
        (('client 3', 'test'), ('test', 'test'))
    """
    found = OWN_SHARD.fullmatch(name)
    if found is None:
        return TEST, TEST
    return client_party(int(found[1])), "test" if found[2] else "train"


def write_shard(
    path: Path,
    shard: Shard,
    metadata: Mapping[str, str],
    key: StorageKey | None = None,
    *,
    durable: bool = True,
) -> None:
    """Writes a shard, for its owner's eyes alone.

    Args:
        path: The file.
        shard: Its content.
        metadata: How it was made; no secret.
        key: What it is sealed under; without one it is in the clear.
        durable: See `write_atomically`; a shard that a power failure cut short cannot be opened.
    """
    if key is None:
        tensors = {"images": shard.images, "labels": shard.labels}
        write_sealed(path, tensors, metadata, durable=durable)
        return
    told = {"metadata": dict(metadata), "shape": list(shard.images.shape)}
    labels, images = shard.labels.contiguous().numpy(), shard.images.contiguous().numpy()
    body = np.concatenate([labels.view(np.uint8), images.reshape(-1)])  # torch would wake threads
    sealed = seal(json.dumps(told).encode(), body.data, key, metadata.get("party", ""))
    write_parts(path, sealed, durable=durable, mode=PRIVATE)


def is_shard(path: Path) -> bool:
    """Tells whether a file is a shard; no key is needed, and nothing is verified.

    Raises:
        UserError: When there is none, or it cannot be read.
    """
    return "party" in read_sealed_metadata(path)


def shard_metadata(path: Path, keys: StorageKeys = NO_KEYS) -> dict[str, str]:
    """Reads how a shard was made; those of a shard in the clear are verified with it alone.

    Raises:
        UserError: When there is none, it is not one, or its key is not among the keys.
    """
    if sealed_under(path) is None:
        return read_sealed_metadata(path)
    metadata, _ = _read_text(unseal_text(path, keys), path)
    return metadata


def open_shard(path: Path, keys: StorageKeys = NO_KEYS) -> Shard:
    """Opens a shard; see `read_shard`."""
    return read_shard(path, keys)[0]


def read_shard(path: Path, keys: StorageKeys = NO_KEYS) -> tuple[Shard, dict[str, str]]:
    """Opens a shard and reads how it was made, both as they were written.

    A sealed one is opened in memory: its plain content is in no file.

    Args:
        path: The file.
        keys: Those that may open it.

    Raises:
        UserError: When there is none, it is damaged, it is not one, or its key is not among the
            keys.
    """
    if sealed_under(path) is not None:
        text, body = unseal(path, keys)
        metadata, shape = _read_text(text, path)
        return _read_body(body, shape, path), metadata
    tensors, metadata = read_sealed(path)
    images, labels = tensors.get("images"), tensors.get("labels")
    if (
        images is None
        or labels is None
        or (images.dtype, images.ndim) != (torch.uint8, 4)
        or (labels.dtype, labels.shape) != (torch.int64, images.shape[:1])
    ):
        raise UserError(f"{path} is no shard: expected as many uint8 images as labels")
    return Shard(images=images, labels=labels), metadata


def open_own_shard(
    path: Path, class_names: Sequence[str], keys: StorageKeys | None = None
) -> Shard:
    """Opens a shard for a run: that of the party in its name, with the run's numbers for classes.

    Args:
        path: The file.
        class_names: Those of the run, in its order.
        keys: Those that may open it; none where shards are in the clear.

    Returns:
        The shard; its labels are places in `class_names`.

    Raises:
        UserError: When it cannot be read, is another's, has other classes, or is in the clear where
            there are keys.
    """
    if keys is not None and sealed_under(path) is None:
        raise UserError(
            f"{path} is in the clear, where encryption.at_rest has shards sealed; put the sealed "
            "one in its place, or say encryption.at_rest=none"
        )
    shard, metadata = read_shard(path, keys or NO_KEYS)
    told = metadata.get("party", "nobody"), metadata.get("part", "nothing")
    if told != (expected := owner_of(path.name)):
        raise UserError(
            f"{path} is the shard of {told[0]} to {told[1]} with, not that of {expected[0]} to "
            f"{expected[1]} with; put the right one in its place"
        )
    own = class_names_of(metadata, path)
    labels = renumbered(shard.labels, own, class_names, f"shard {path}")
    return replace(shard, labels=labels)


def class_names_of(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    """Reads the names of a shard's classes, in the order of its labels.

    Raises:
        UserError: When it does not tell them.
    """
    if CLASS_NAMES not in metadata:
        raise UserError(
            f"shard {path} does not name its classes, as shards of older versions do not; write it "
            "anew"
        )
    return read_names(metadata[CLASS_NAMES], f"shard {path}")


def _read_text(text: bytes, path: Path) -> tuple[dict[str, str], list[int]]:
    """Reads the text of a sealed shard, which nobody but its owner wrote."""
    try:
        told = json.loads(text)
        return dict(told["metadata"]), [int(side) for side in told["shape"]]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is no shard: something else is sealed in it") from None


def _read_body(body: bytearray, shape: Sequence[int], path: Path) -> Shard:
    """Takes labels and images out of the body of a sealed shard, without a copy."""
    images = math.prod(shape)
    ends = 8 * shape[0] if len(shape) == 4 and min(shape) >= 0 else -1
    if ends < 0 or ends + images != len(body):
        raise UserError(f"{path} is no shard: expected as many uint8 images as labels")
    if not images:
        return Shard(
            images=torch.empty(list(shape), dtype=torch.uint8),
            labels=torch.empty(shape[0], dtype=torch.int64),
        )
    return Shard(
        images=torch.frombuffer(body, dtype=torch.uint8, offset=ends).view(list(shape)),
        labels=torch.frombuffer(body, dtype=torch.int64, count=shape[0]),
    )
