"""Shards on disk: the encrypted images and the labels of one holder, in one sealed file.

n images, C channels, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.sealed import read_sealed, read_sealed_metadata, write_sealed

TEST_SHARD = "test.safetensors"
CLIENT_SHARDS = "client-*.safetensors"


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


def write_shard(
    path: Path, shard: Shard, metadata: dict[str, str], *, durable: bool = True
) -> None:
    """Writes a shard.

    Args:
        path: The file.
        shard: Its content.
        metadata: How it was made; no secret.
        durable: See `write_atomically`; a shard that a power failure cut short cannot be opened.
    """
    write_sealed(path, {"images": shard.images, "labels": shard.labels}, metadata, durable=durable)


def shard_metadata(path: Path) -> dict[str, str]:
    """Reads how a shard was made, and verifies nothing; who goes by it reads the shard as well.

    Raises:
        UserError: When there is none, or it is not one.
    """
    return read_sealed_metadata(path)


def open_shard(path: Path) -> Shard:
    """Opens a shard; see `read_shard`."""
    return read_shard(path)[0]


def read_shard(path: Path) -> tuple[Shard, dict[str, str]]:
    """Opens a shard and reads how it was made, both as they were written.

    Raises:
        UserError: When there is none, it is damaged, or it is not one.
    """
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
