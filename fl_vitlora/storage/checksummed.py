"""Tensors in a file that tells whether it is still what was written.

A sealed file is a safetensors file whose metadata hold a digest, SHA-256 in hexadecimal digits, of
all that it says: names, types, shapes and bytes of the tensors, and the other metadata. It betrays
an accident of disk or copy, be it one bit; it is no signature, so that whoever can write the file
can also write another digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
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
LENGTH = struct.Struct("<Q")  # of the header, in bytes
# What a header can raise: safetensors compares all sizes with the file's before anything is
# allocated, but leaves types and shapes of nothing to torch.
UNREADABLE = (SafetensorError, OSError, RuntimeError, TypeError, ValueError)


class DamagedFileError(UserError):
    """A sealed file that is missing, or is not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}; put a whole copy in its place, or make it anew")


def write_sealed(
    path: Path,
    tensors: State,
    metadata: Mapping[str, str],
    *,
    durable: bool = True,
    mode: int = PRIVATE,
) -> None:
    """Writes tensors with a digest, whole or not at all.

    Args:
        path: The file; its folder must exist.
        tensors: The tensors by name; no two of them share memory.
        metadata: The texts beside the tensors; the name `DIGEST` is taken.
        durable: The same as in `write_atomically`.
        mode: The permissions of the file; by default only its owner can read and write it.
    """
    laid_out = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGEST: digest_of(laid_out, metadata)}
    write_parts(path, _in_order(save(laid_out, sealed)), durable=durable, mode=mode)


def _in_order(file: bytes) -> Iterator[bytes | memoryview]:
    """Yields a safetensors file with its header in a fixed order, so that equal files are alike.

    The library writes the metadata in an order that differs from one call to the next.
    """
    (length,) = LENGTH.unpack_from(file)
    header = json.loads(file[LENGTH.size : LENGTH.size + length])
    metadata = {METADATA: dict(sorted(header.pop(METADATA).items()))}
    text = json.dumps({**metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH.size)  # as safetensors aligns what follows
    yield LENGTH.pack(len(text)) + text
    yield memoryview(file)[LENGTH.size + length :]


def read_sealed(path: Path) -> tuple[State, dict[str, str]]:
    """Reads what `write_sealed` wrote, or refuses the file.

    The tensors are the file's own pages, read when they are needed; what is written into a tensor
    does not come into the file.

    Args:
        path: The file.

    Returns:
        The tensors by name, and the metadata that were given with them.

    Raises:
        DamagedFileError: When there is none, or any of it is not as it was written.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = metadata.pop(DIGEST, None)
    if digest is None:
        raise DamagedFileError(
            path, "has no digest, so it cannot be checked for damage; older versions wrote none"
        )
    if digest != digest_of(tensors, metadata):
        raise DamagedFileError(path, "is damaged: its content does not have the digest in it")
    return tensors, metadata


def read_sealed_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata alone, which verifies nothing.

    Args:
        path: The file.

    Returns:
        The metadata, if the file has not been damaged since; only `read_sealed` can tell.

    Raises:
        DamagedFileError: When there is none, or it is no safetensors file.
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
    """Computes the digest of tensors, wherever they are, and of what is said beside them.

    A description of all tensors comes first, so that no other tensors give the same bytes.

    Returns:
        64 hexadecimal digits.
    """
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    head = json.dumps([sorted(metadata.items()), described], separators=(",", ":"))
    digest = hashlib.sha256(head.encode())
    for name in names:
        flat = tensors[name].detach().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
