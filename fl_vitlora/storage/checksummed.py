"""Files of tensors with a checksum, by which a damaged file is recognised.

In this module, a sealed file is a safetensors file whose metadata contain a digest (checksum) of
the whole content. Sealing does not encrypt the file. The digest is computed with SHA-256 and stored
in hexadecimal digits. The content consists of the names, types, shapes and bytes of the tensors,
and of the other metadata. If a faulty disk or an incomplete copy changes a single bit, the digest
no longer matches. The digest is not a signature: a person who can write the file can also replace
the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.state import State
from fl_vitlora.storage.files import PRIVATE, write_parts

DIGEST = "sha256"
METADATA = "__metadata__"
LENGTH = struct.Struct("<Q")  # the length of the header, in bytes
# The errors that a damaged header can cause. Before safetensors allocates memory, it compares all
# sizes with the size of the file. It does not check the type and the shape of an empty tensor; if
# these are damaged, torch raises an error.
UNREADABLE = (SafetensorError, OSError, RuntimeError, TypeError, ValueError)


class DamagedFileError(UserError):
    """An error that says that a file is missing or damaged, or has the wrong format."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} {what}; replace the file by an undamaged copy, or create it again"
        )


def write_sealed(
    path: Path,
    tensors: State,
    metadata: Mapping[str, str],
    *,
    durable: bool = True,
    mode: int = PRIVATE,
) -> None:
    """Writes tensors to a file that also contains their digest.

    The file is written completely or not at all.

    Args:
        path: The path of the file. The folder of the file must exist.
        tensors: The tensors by name. Two tensors must not share memory.
        metadata: Texts by name, which are stored in the same file. The name `DIGEST` must not be
            used.
        durable: True to wait until the file is on the disk; see `write_atomically`.
        mode: The permissions of the file. By default only the owner can read and write the file.
    """
    laid_out = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGEST: digest_of(laid_out, metadata)}
    write_parts(path, _in_order(save(laid_out, sealed)), durable=durable, mode=mode)


def write_sealed_pieces(
    path: Path,
    numbers: State,
    name: str,
    shape: Sequence[int],
    pieces: Iterable[memoryview],
    *,
    metadata: Mapping[str, str],
    durable: bool = True,
) -> None:
    """Writes the file that `write_sealed` writes; one tensor is never in memory as a whole.

    Args:
        path: The path of the file. The folder of the file must exist.
        numbers: The small tensors by name, int64.
        name: The name of the tensor that comes in pieces, uint8.
        shape: The shape of the tensor `name`.
        pieces: The pieces of this tensor's bytes, in order; a piece has any number of bytes.
        metadata: Texts by name, as in `write_sealed`.
        durable: True to wait until the file is on the disk; see `write_atomically`.

    Raises:
        ValueError: If the pieces have another number of bytes than the shape.
    """
    size, seen = math.prod(shape), 0
    small = {key: numbers[key].detach().cpu().contiguous() for key in sorted(numbers)}
    described = [[key, str(t.dtype), list(t.shape)] for key, t in small.items()]
    described.append([name, str(torch.uint8), list(shape)])
    digest = _digest_of_head(metadata, sorted(described))
    entries = _entries(small, name, shape)

    def parts() -> Iterator[bytes | memoryview]:
        nonlocal seen
        yield _head(metadata, entries, "0" * 2 * digest.digest_size)
        yield from map(_bytes_of, small.values())
        for key in filter(name.__gt__, small):
            digest.update(_bytes_of(small[key]))
        for piece in pieces:
            seen += len(piece)
            digest.update(piece)
            yield piece
        for key in filter(name.__lt__, small):
            digest.update(_bytes_of(small[key]))
        if seen != size:
            raise ValueError(f"the tensor {name} has {seen} bytes, and {size} were announced")

    def beginning() -> bytes:
        return _head(metadata, entries, digest.hexdigest())

    write_parts(path, parts(), durable=durable, mode=PRIVATE, beginning=beginning)


def _entries(small: State, name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Returns type, shape and number of bytes of each tensor, in the order of the file."""
    entries: dict[str, Any] = {key: ("I64", list(t.shape), t.nbytes) for key, t in small.items()}
    return entries | {name: ("U8", list(shape), math.prod(shape))}


def _head(metadata: Mapping[str, str], entries: Mapping[str, Any], digest: str) -> bytes:
    """Returns the header of a safetensors file, in the order that `_in_order` gives it."""
    header: dict[str, Any] = {METADATA: dict(sorted({**metadata, DIGEST: digest}.items()))}
    end = 0
    for key, (dtype, shape, size) in entries.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return _padded(header)


def _padded(header: Mapping[str, Any]) -> bytes:
    """Returns a header as JSON with its length before it, aligned as safetensors does."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH.size)
    return LENGTH.pack(len(text)) + text


def _in_order(file: bytes) -> Iterator[bytes | memoryview]:
    """Yields the parts of a safetensors file, with the header in a fixed order.

    The library safetensors may write the metadata in a different order at each call. With a fixed
    order, files with equal tensors and metadata have equal bytes.
    """
    (length,) = LENGTH.unpack_from(file)
    header = json.loads(file[LENGTH.size : LENGTH.size + length])
    metadata = {METADATA: dict(sorted(header.pop(METADATA).items()))}
    yield _padded({**metadata, **header})
    yield memoryview(file)[LENGTH.size + length :]


def read_sealed(path: Path) -> tuple[State, dict[str, str]]:
    """Reads a file that `write_sealed` wrote, and checks its digest.

    The tensors are mapped from the file: the operating system reads their bytes when they are
    needed. If a program changes a mapped tensor in memory, the file does not change.

    Args:
        path: The path of the file.

    Returns:
        The tensors by name, and the metadata without the digest.

    Raises:
        DamagedFileError: If the file is missing, or if its content has changed since the file was
            written.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = metadata.pop(DIGEST, None)
    if digest is None:
        raise DamagedFileError(
            path,
            "has no checksum, so it cannot be checked for damage; only old versions of this "
            "program write such files",
        )
    if digest != digest_of(tensors, metadata):
        raise DamagedFileError(path, "is damaged: its content does not match its checksum")
    return tensors, metadata


def read_sealed_metadata(path: Path) -> dict[str, str]:
    """Reads only the metadata of a file that `write_sealed` wrote, without checking the digest.

    Args:
        path: The path of the file.

    Returns:
        A dictionary: the metadata without the digest. The metadata may be damaged, because only
        `read_sealed` checks the digest.

    Raises:
        DamagedFileError: If the file is missing, or if it is not a safetensors file.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
    metadata.pop(DIGEST, None)
    return metadata


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise DamagedFileError(path, "is missing") from None
    except UNREADABLE as error:
        raise DamagedFileError(path, f"cannot be read ({_one_line(error)})") from None


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Computes the SHA-256 digest of tensors and metadata. The tensors may be on any device.

    The names, types and shapes of all tensors are hashed before the bytes of the tensors. So two
    different sets of tensors never give the same input to the hash function.

    Returns:
        The digest as 64 hexadecimal digits.
    """
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = _digest_of_head(metadata, described)
    for name in names:
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _digest_of_head(metadata: Mapping[str, str], described: Sequence[Any]) -> hashlib._Hash:
    """Returns a digest that covers the metadata, and names, types and shapes of tensors."""
    head = json.dumps([sorted(metadata.items()), described], separators=(",", ":"))
    return hashlib.sha256(head.encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, one after the other."""
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
