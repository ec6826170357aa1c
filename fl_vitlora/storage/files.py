"""Files that are either whole or not there, and what is said when the disk takes them not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".*.tmp"  # what a file is called until it is whole
PUBLIC, PRIVATE, PRIVATE_FOLDER = 0o666, 0o600, 0o700  # permissions; the umask narrows the first


class WriteError(RuntimeError):
    """The system does not take a file: the disk is full, read-only, or a name too long.

    Args:
        path: The file or folder.
        reason: The reason that the system gives.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written: {reason}")
        self.reason = reason


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file and the system's reason in one line where a write in it fails.

    Raises:
        WriteError: When it does.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(path, str(error.strerror or error)) from error


def write_atomically(
    path: Path,
    content: bytes | str,
    *,
    durable: bool = True,
    mode: int = PUBLIC,
    new: bool = False,
) -> None:
    """Writes a file under a temporary name, syncs it, renames it and syncs the folder.

    Args:
        path: The file; its folder must exist. An older file of that name is replaced.
        content: Bytes, or text to be encoded in UTF-8.
        durable: True to wait for the disk, about a millisecond. Without it the file outlives
            this program's end, whatever that be, but perhaps not a power failure in the next half
            minute; it must not replace what cannot be made again.
        mode: `PUBLIC` gives the permissions that the umask leaves, and those of `PRIVATE` at
            least; any other mode is set as it is, whatever the umask.
        new: True if an older file must not be replaced; the write then fails.

    Raises:
        WriteError: When the system does not take it; an older file stays, and nothing else.
    """
    data = content.encode() if isinstance(content, str) else content
    write_parts(path, [data], durable=durable, mode=mode, new=new)


def write_parts(
    path: Path,
    parts: Iterable[bytes | memoryview],
    *,
    durable: bool = True,
    mode: int = PUBLIC,
    new: bool = False,
) -> None:
    """Writes a file that is made part by part; see `write_atomically`.

    Args:
        path: The file; its folder must exist. An older file of that name is replaced.
        parts: The content, in order.
        durable: The same as in `write_atomically`.
        mode: The same as in `write_atomically`.
        new: The same as in `write_atomically`.

    Raises:
        WriteError: When the system does not take it; an older file stays, and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with _open_new(temporary, mode) as file:
                for part in parts:
                    file.write(part)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            if new:
                os.link(temporary, path)
            else:
                temporary.replace(path)
            if durable:
                sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):  # whatever was wrong was said
                temporary.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; the owner can use each new one, whatever the umask.

    Raises:
        WriteError: When the system does not allow it.
    """
    missing = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    with writing(folder):
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            given = stat.S_IMODE(place.stat().st_mode)
            if given | PRIVATE_FOLDER != given:
                place.chmod(given | PRIVATE_FOLDER)
        folder.mkdir(exist_ok=True)


def make_private_folder(folder: Path) -> None:
    """Makes a folder, or takes one that is there, and lets its owner alone into it.

    Args:
        folder: The folder; the one above it must exist.

    Raises:
        WriteError: When the system does not allow it.
    """
    with writing(folder):
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != PRIVATE_FOLDER:
            folder.chmod(PRIVATE_FOLDER)


def _open_new(path: Path, mode: int) -> BinaryIO:
    """Opens an empty file for writing, with its permissions before anything is in it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, mode)
    try:
        given = stat.S_IMODE(os.fstat(descriptor).st_mode)
        wanted = given | PRIVATE if mode == PUBLIC else mode
        if given != wanted:
            os.fchmod(descriptor, wanted)
        return os.fdopen(descriptor, "wb")
    except BaseException:
        os.close(descriptor)
        raise


def append(path: Path, content: bytes) -> None:
    """Adds to a file, whole or not at all.

    Args:
        path: The file; it is made if there is none.
        content: The bytes that are added.

    Raises:
        WriteError: When the system does not take it; what was there before stays.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def sync_files(folder: Path) -> None:
    """Waits until all files of a folder are on the disk, which were written without waiting.

    Raises:
        WriteError: When the disk does not take one after all.
    """
    for path in folder.iterdir():
        with writing(path), path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


class HeldError(RuntimeError):
    """Another process holds a file or folder."""


class Hold(contextlib.ExitStack):
    """Keeps other processes from holding a file or folder too, until closed or gone.

    A file that is replaced is another one; a folder stays the same. Where a file system knows no
    locks, nobody is kept off.

    Args:
        path: The file or folder.

    Raises:
        HeldError: When another holds it.
        OSError: When it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        descriptor = os.open(path, os.O_RDONLY)
        self.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise HeldError(f"another process holds {path}") from None
        except OSError:
            return
        # A child that is just being started may have a copy of the descriptor for a moment.
        self.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        self.close()


def sync_folder(folder: Path) -> None:
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
