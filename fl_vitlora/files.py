"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_atomically(
    path: Path, content: bytes | str, *, durable: bool = True, mode: int = 0o666
) -> None:
    """Writes a file under a temporary name, syncs it, renames it and syncs the folder.

    Args:
        path: The file; its folder must exist. An older file of that name is replaced.
        content: Bytes, or text to be encoded in UTF-8.
        durable: Whether to wait for the disk, about a millisecond. Without it the file outlives
            this program's end, whatever that be, but perhaps not a power failure in the next half
            minute; it must not replace what cannot be made again.
        mode: Permissions, less what the umask takes away.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode)
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where a folder can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems know no such thing
            raise
    finally:
        os.close(descriptor)
