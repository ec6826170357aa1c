"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes a file under a temporary name, syncs it and renames it.

    Args:
        path: The file; its folder must exist. An older file of that name is replaced.
        content: Bytes, or text to be encoded in UTF-8.
        durable: Whether to wait for the disk, about a millisecond. Without it the file outlives
            this program's end, whatever that be, but perhaps not a power failure in the next half
            minute; it must not replace what cannot be made again.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
