"""Shards on disk: the encrypted images and the labels of one holder, in one safetensors file.

n images, C channels, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.files import write_atomically

TEST_SHARD = "test.safetensors"


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
    tensors = {"images": shard.images.contiguous(), "labels": shard.labels.contiguous()}
    write_atomically(path, save(tensors, metadata), durable=durable)


def shard_metadata(path: Path) -> dict[str, str]:
    """Reads how a shard was made.

    Raises:
        UserError: When there is none, or it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"shard {path} cannot be read: {error}") from None


def open_shard(path: Path) -> Shard:
    """Opens a shard.

    Raises:
        UserError: When there is none, or it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shard = Shard(images=file.get_tensor("images"), labels=file.get_tensor("labels"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"shard {path} cannot be read: {error}") from None
    if shard.images.dtype != torch.uint8 or len(shard.images) != len(shard.labels):
        raise UserError(f"shard {path}: expected as many uint8 images as labels")
    return shard
