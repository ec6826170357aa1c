"""Shards: files with the encrypted images and the labels of one party.

A party is a client, or the owner of common test images. A file may be sealed, which means that the
whole file is encrypted with a storage key (`encryption.at_rest`). Without the key, a sealed file
reveals no images, labels or class names. A file that is not sealed contains a checksum, which shows
whether the file is damaged (`storage.checksummed`). The metadata of a shard contain its party, its
part (training, validation or testing) and its class names. A run checks the party, the part and the
class names when it opens the shard.

Letters in shapes: n images of a shard, m of these images, C channels, H × W pixels.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.data.class_names import CLASS_NAMES, read_names, renumbered
from fl_vitlora.encryption.at_rest import seal_pieces, sealed_under, unseal, unseal_text
from fl_vitlora.encryption.holder import TEST, Part, client_party
from fl_vitlora.encryption.storage_keys import StorageKey, StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import (
    digest_of,
    read_sealed,
    read_sealed_metadata,
    write_sealed_pieces,
)
from fl_vitlora.storage.files import PRIVATE, write_parts

TEST_SHARD = "test.safetensors"
VALIDATION_SHARD = "validation.safetensors"
CLIENT_SHARDS = "client-*.safetensors"
OWN_SHARD = re.compile(r"client-(\d+)(?:-(validation|test))?\.safetensors")
NO_KEYS = StorageKeys()


@dataclass(frozen=True)
class Shard:
    """Images as the model receives them, with their labels. The tensors of a shard never change.

    Attributes:
        images: The images, uint8 (n, C, H, W); if the run encrypts images, this is ciphertext.
        labels: The label of each image, int64 (n,).
        features: The features of the images, (n, ...), if the method has features and the client
            keeps them (`finetuning.features`); otherwise None. No shard file contains features.
    """

    images: Tensor
    labels: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Returns the digest of the images, 64 hexadecimal digits, which is computed only once."""
        return digest_of({"images": self.images}, {})

    def take(self, chosen: Tensor) -> Shard:
        """Returns a shard that has only the images at the positions `chosen`, int64 (m,)."""
        features = None if self.features is None else self.features[chosen]
        return Shard(images=self.images[chosen], labels=self.labels[chosen], features=features)


def client_shard(client: int, part: Part = "train") -> str:
    """Returns the file name of a client's shard.

    Args:
        client: The number of the client, from 0.
        part: The use of the images in the shard.

    Example:
        >>> client_shard(3), client_shard(3, "test")
        ('client-00003.safetensors', 'client-00003-test.safetensors')
    """
    ending = "" if part == "train" else f"-{part}"
    return f"client-{client:05d}{ending}.safetensors"


def owner_of(name: str) -> tuple[str, str]:
    """Returns the party and the part that the file name of a shard states.

    Args:
        name: The file name of the shard.

    Returns:
        The name of the party, and "train", "validation" or "test".

    Example:
        >>> owner_of(client_shard(3, "test")), owner_of(VALIDATION_SHARD)
        (('client 3', 'test'), ('test', 'validation'))
    """
    found = OWN_SHARD.fullmatch(name)
    if found is None:
        return TEST, "validation" if name == VALIDATION_SHARD else "test"
    return client_party(int(found[1])), found[2] or "train"


def write_shard(
    path: Path,
    shard: Shard,
    metadata: Mapping[str, str],
    key: StorageKey | None = None,
    *,
    durable: bool = True,
) -> None:
    """Writes a shard to a file that only the user who runs this process can read.

    Args:
        path: The path of the file.
        shard: The images and labels.
        metadata: A mapping from names to texts that describe the shard. The texts must not contain
            a secret.
        key: The storage key with which the file is sealed; None to write a file that is not sealed.
        durable: True to wait until the file is on the disk, as in `write_atomically`. If `durable`
            is False, a power failure can truncate the shard, and a truncated shard cannot be
            opened.
    """
    pieces = [shard.images.contiguous()]
    shape = shard.images.shape
    write_shard_pieces(
        path, shard.labels, shape, pieces, metadata=metadata, key=key, durable=durable
    )


def write_shard_pieces(
    path: Path,
    labels: Tensor,
    shape: Sequence[int],
    pieces: Iterable[Tensor],
    *,
    metadata: Mapping[str, str],
    key: StorageKey | None = None,
    durable: bool = True,
) -> None:
    """Writes the same file as `write_shard`, but never has all images in memory.

    Args:
        path: The path of the file.
        labels: The labels of all images, int64 (n,).
        shape: The shape of all images, (n, C, H, W).
        pieces: The images in their order, each piece uint8 (m, C, H, W) for any m.
        metadata: Texts by name, as in `write_shard`.
        key: The storage key with which the file is sealed; None for a file that is not sealed.
        durable: True to wait until the file is on the disk, as in `write_shard`.
    """
    bodies = (piece.contiguous().reshape(-1).numpy().data for piece in pieces)
    if key is None:
        numbers = {"labels": labels}
        write_sealed_pieces(
            path, numbers, "images", shape, bodies, metadata=metadata, durable=durable
        )
        return
    described = json.dumps({"metadata": dict(metadata), "shape": list(shape)}).encode()
    first = labels.contiguous().numpy().view(np.uint8).data  # torch would start threads
    size = first.nbytes + math.prod(shape)
    body = itertools.chain([first], bodies)
    sealed = seal_pieces(described, body, size, key, metadata.get("party", ""))
    write_parts(path, sealed, durable=durable, mode=PRIVATE)


def is_shard(path: Path) -> bool:
    """Returns True if a file is a shard. The content is not verified, and no key is needed.

    Args:
        path: The path of the file.

    Raises:
        UserError: When the file does not exist or cannot be read.
    """
    return "party" in read_sealed_metadata(path)


def shard_metadata(path: Path, keys: StorageKeys = NO_KEYS) -> dict[str, str]:
    """Reads only the metadata of a shard, without its images.

    If the shard is not sealed, this function does not verify the metadata; only `read_shard`
    verifies them.

    Args:
        path: The path of the shard.
        keys: The storage keys with which the shard may be opened.

    Returns:
        The metadata of the shard, as a dictionary from names to texts.

    Raises:
        UserError: When the file does not exist, is not a shard, or is sealed with a key that is not
            in `keys`.
    """
    if sealed_under(path) is None:
        return read_sealed_metadata(path)
    metadata, _ = read_text(unseal_text(path, keys), path)
    return metadata


def open_shard(path: Path, keys: StorageKeys = NO_KEYS) -> Shard:
    """Reads a shard with `read_shard`, and returns the shard without its metadata."""
    return read_shard(path, keys)[0]


def read_shard(path: Path, keys: StorageKeys = NO_KEYS) -> tuple[Shard, dict[str, str]]:
    """Reads and verifies a shard and its metadata.

    A sealed shard is decrypted in memory; its decrypted content is never written to disk.

    Args:
        path: The path of the shard.
        keys: The storage keys with which the shard may be opened.

    Returns:
        The shard and its metadata, as they were written.

    Raises:
        UserError: When the file does not exist, is damaged, is not a shard, or is sealed with a key
            that is not in `keys`.
    """
    if sealed_under(path) is not None:
        text, body = unseal(path, keys)
        metadata, shape = read_text(text, path)
        return _read_body(body, shape, path), metadata
    tensors, metadata = read_sealed(path)
    images, labels = tensors.get("images"), tensors.get("labels")
    if (
        images is None
        or labels is None
        or (images.dtype, images.ndim) != (torch.uint8, 4)
        or (labels.dtype, labels.shape) != (torch.int64, images.shape[:1])
    ):
        raise UserError(f"{path} is not a shard: expected uint8 images (n, C, H, W) and n labels")
    return Shard(images=images, labels=labels), metadata


def open_own_shard(
    path: Path, class_names: Sequence[str], keys: StorageKeys | None = None
) -> Shard:
    """Opens a shard for a run, checks its party, and converts its labels to the run's labels.

    Args:
        path: The path of the shard. The file name states which party must own the shard.
        class_names: The names of the run's classes, in the order of the run's labels.
        keys: The storage keys with which the shard may be opened; None if the run's shards are not
            sealed.

    Returns:
        The shard, whose labels are positions in `class_names`.

    Raises:
        UserError: When the shard cannot be read, belongs to another party or has other classes than
            the run, or when the shard is not sealed although keys are given.
    """
    if keys is not None and sealed_under(path) is None:
        raise UserError(
            f"{path} is not sealed (encrypted on disk), but encryption.at_rest expects sealed "
            "shards; put the sealed shard in its place, or set encryption.at_rest=none"
        )
    shard, metadata = read_shard(path, keys or NO_KEYS)
    named = metadata.get("party", "nobody"), metadata.get("part", "nothing")
    if named != (expected := owner_of(path.name)):
        raise UserError(
            f"{path} is the {named[1]} shard of {named[0]}; expected the {expected[1]} shard of "
            f"{expected[0]}; put the right shard in its place"
        )
    own = class_names_of(metadata, path)
    labels = renumbered(shard.labels, own, class_names, f"shard {path}")
    return replace(shard, labels=labels)


def class_names_of(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    """Reads the names of a shard's classes, in the order of its labels.

    Args:
        metadata: The metadata of the shard.
        path: The path of the shard, for messages.

    Raises:
        UserError: When the metadata do not contain class names.
    """
    if CLASS_NAMES not in metadata:
        raise UserError(
            f"shard {path} has no list of class names, because an older version of this program "
            "wrote the shard; write the shard again"
        )
    return read_names(metadata[CLASS_NAMES], f"shard {path}")


def read_text(text: bytes, path: Path) -> tuple[dict[str, str], list[int]]:
    """Reads the text at the beginning of a sealed shard.

    Args:
        text: The text, which is JSON.
        path: The path of the shard, for messages.

    Returns:
        The metadata, and the shape of the images.

    Raises:
        UserError: When the text is not the text of a shard.
    """
    try:
        described = json.loads(text)
        return dict(described["metadata"]), [int(side) for side in described["shape"]]
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"{path} is not a shard: expected metadata and a shape in the header of the file"
        ) from None


def _read_body(body: bytearray, shape: Sequence[int], path: Path) -> Shard:
    """Returns the labels and images in the body of a sealed shard, without copying the bytes.

    Raises:
        UserError: When the length of the body does not fit the shape of the images.
    """
    images = math.prod(shape)
    ends = 8 * shape[0] if len(shape) == 4 and min(shape) >= 0 else -1
    if ends < 0 or ends + images != len(body):
        raise UserError(f"{path} is not a shard: expected uint8 images (n, C, H, W) and n labels")
    if not images:
        return Shard(
            images=torch.empty(list(shape), dtype=torch.uint8),
            labels=torch.empty(shape[0], dtype=torch.int64),
        )
    return Shard(
        images=torch.frombuffer(body, dtype=torch.uint8, offset=ends).view(list(shape)),
        labels=torch.frombuffer(body, dtype=torch.int64, count=shape[0]),
    )
