"""Makes and reads shards image by image, so that a shard need not fit into the memory.

A shard of 10,000 images of 224 × 224 pixels has 1.5 GB. An owner who encrypts such a shard has at
most `AT_ONCE` bytes of plain images in memory, and about three times as much in all: the plain
images, their ciphertext and the file's ciphertext of one piece.

Letters in shapes: n images of a shard, m images of a piece, C channels, H × W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.data.images import Images, Indices
from fl_vitlora.data.shards import NO_KEYS, read_shard, read_text, write_shard_pieces
from fl_vitlora.encryption.at_rest import sealed_under, unseal_pieces
from fl_vitlora.encryption.holder import KeyHolder, Part
from fl_vitlora.encryption.storage_keys import StorageKey, StorageKeys
from fl_vitlora.errors import UserError

AT_ONCE = 2**25  # most bytes of images in memory together
WIDTH = 8  # bytes of a label


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """The content from which a shard is made.

    Attributes:
        images: The plain images.
        positions: The positions in `images` of the shard's images, in the order of the shard.
        party: The party that owns the shard, for example "client 3".
        part: The use of the images.
    """

    images: Images
    positions: Indices
    party: str
    part: Part

    def __len__(self) -> int:
        return len(self.positions)


def encrypt_shard(
    path: Path,
    content: ShardContent,
    *,
    holder: KeyHolder,
    metadata: Mapping[str, str],
    storage: StorageKey | None,
    show: Callable[[int], None] = lambda images: None,
    at_once: int = AT_ONCE,
) -> None:
    """Encrypts images piece by piece and writes them as a shard.

    The shard equals the shard that `owner.write_encrypted_shards` writes from the same images. The
    file appears under its name only when it is complete and on the disk.

    Args:
        path: The path of the shard.
        content: The plain images of the shard, and the party that owns them.
        holder: The key holder that encrypts the images.
        metadata: The texts to write into the shard. This function adds the party and the part.
        storage: The storage key that seals the file; None for a file that is not sealed.
        show: A function that is called with the number of images after each piece.
        at_once: The largest number of bytes of plain images that are in memory together.

    Raises:
        UserError: If an image cannot be read; no file is then written.
    """
    shape = holder.cipher.image_shape
    labels = torch.from_numpy(content.images.labels[content.positions])

    def pieces() -> Iterator[Tensor]:
        most = max(1, at_once // math.prod(shape))
        for first in range(0, len(content), most):
            positions = content.positions[first : first + most]
            plain = content.images.read(positions, *shape[1:])
            yield holder.encrypt(plain, content.party, content.part, first)
            show(len(positions))

    described = {**metadata, "party": content.party, "part": content.part}
    write_shard_pieces(
        path, labels, (len(content), *shape), pieces(), metadata=described, key=storage
    )


@dataclass(frozen=True, kw_only=True)
class OpenShard:
    """A shard whose images are read piece by piece.

    Attributes:
        metadata: The metadata of the shard.
        labels: The label of each image, int64 (n,).
        shape: The shape (C, H, W) of an image.
        pieces: The encrypted images in their order, each piece uint8 (m, C, H, W). The pieces can
            be read only once. A file that was cut off or extended raises an error after its last
            piece.
    """

    metadata: Mapping[str, str]
    labels: Tensor
    shape: tuple[int, int, int]
    pieces: Iterator[Tensor]

    def __len__(self) -> int:
        return len(self.labels)


def open_pieces(path: Path, keys: StorageKeys = NO_KEYS) -> OpenShard:
    """Opens a shard in such a way that only one piece at a time is in memory.

    Args:
        path: The path of the shard.
        keys: The storage keys with which the shard may be opened.

    Raises:
        UserError: If the file does not exist, is damaged, is not a shard, or is sealed with a key
            that is not in `keys`.
    """
    if sealed_under(path) is None:  # the images are mapped from the file
        shard, metadata = read_shard(path)
        channels, height, width = shard.images.shape[1:]
        most = max(1, AT_ONCE // max(1, channels * height * width))
        return OpenShard(
            metadata=metadata,
            labels=shard.labels,
            shape=(channels, height, width),
            pieces=iter(torch.split(shard.images, most)),
        )
    chunks = unseal_pieces(path, keys)
    metadata, shape = read_text(next(chunks), path)
    size = int.from_bytes(next(chunks), "big")
    if len(shape) != 4 or min(shape) < 0 or WIDTH * shape[0] + math.prod(shape) != size:
        raise UserError(f"{path} is not a shard: expected uint8 images (n, C, H, W) and n labels")
    stock = _Stock(chunks)
    labels = torch.from_numpy(np.frombuffer(stock.take(WIDTH * shape[0]), dtype=np.int64).copy())
    return OpenShard(
        metadata=metadata,
        labels=labels,
        shape=(shape[1], shape[2], shape[3]),
        pieces=_images(stock, shape),
    )


class _Stock:
    """A stream of bytes, from which any number of bytes can be taken at a time.

    Args:
        chunks: The chunks of the stream, in order.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def take(self, size: int) -> bytearray:
        """Returns the next `size` bytes; fewer at the end of the stream."""
        taken = bytearray(self._rest[:size])
        self._rest = self._rest[size:]
        while len(taken) < size and (chunk := next(self._chunks, None)) is not None:
            wanted = size - len(taken)
            taken += chunk[:wanted]
            self._rest = chunk[wanted:]
        return taken

    def finish(self) -> None:
        """Reads the rest of the stream, so that its end is verified."""
        for _ in self._chunks:
            pass


def _images(stock: _Stock, shape: list[int]) -> Iterator[Tensor]:
    """Yields the images of a sealed shard piece by piece, and verifies the end of the file."""
    count, *one = shape
    most = max(1, AT_ONCE // max(1, math.prod(one)))
    for first in range(0, count, most):
        number = min(most, count - first)
        taken = stock.take(number * math.prod(one))
        if taken:
            yield torch.frombuffer(taken, dtype=torch.uint8).view(number, *one)
    stock.finish()


def verify(path: Path, keys: StorageKeys = NO_KEYS) -> dict[str, str]:
    """Reads a shard to its end, and returns its metadata.

    Raises:
        UserError: If the shard is damaged, or cannot be opened with these keys.
    """
    opened = open_pieces(path, keys)
    for _ in opened.pieces:
        pass
    return dict(opened.metadata)


def decrypted(opened: OpenShard, holder: KeyHolder, party: str, part: Part) -> Iterator[Tensor]:
    """Yields the plain images of a shard piece by piece, each uint8 (m, C, H, W).

    Args:
        opened: The shard.
        holder: The key holder that encrypted the shard.
        party: The party that owns the shard.
        part: The use of the images.
    """
    start = 0
    for piece in opened.pieces:
        yield holder.decrypt(piece, party, part, start)
        start += len(piece)
