"""Writes files completely or not at all, makes folders, and locks files and folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".*.tmp"  # the pattern of a file's name until the file is complete
TRIES, BETWEEN_TRIES = 4, 0.02  # how often, and after how many seconds, a lock is tried again
PUBLIC, PRIVATE, PRIVATE_FOLDER = 0o666, 0o600, 0o700  # permissions; the umask narrows PUBLIC


class WriteError(RuntimeError):
    """An error that says that a file cannot be written, for example because the disk is full.

    Args:
        path: The path of the file or folder.
        reason: The reason that the operating system states, for example "No space left on device".
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written: {reason}")
        self.reason = reason


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside a `with` block, turns an `OSError` into an error with the path and the reason.

    Raises:
        WriteError: If the code inside the block raises an `OSError`.
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
    """Writes a file so that a reader sees the old content or the whole new content.

    The file is written under a temporary name and then renamed.

    Args:
        path: The path of the file. The folder of the file must exist. An older file at this path is
            replaced.
        content: The bytes to write, or a text that is encoded in UTF-8.
        durable: True to wait until the file is on the disk, which takes about a millisecond. If
            `durable` is False, the file is safe if this program crashes, but it can be lost in a
            power failure within the next half minute. So do not pass False if the file replaces
            content that cannot be made again.
        mode: The permissions of the file. With `PUBLIC`, the file gets the permissions that the
            user's umask allows, and at least those of `PRIVATE`. Every mode other than `PUBLIC` is
            set exactly, and the umask is ignored.
        new: True to raise an error if a file already exists at this path; False to replace the
            file.

    Raises:
        WriteError: If the system cannot write the file. An older file at this path stays
            unchanged, and the temporary file is removed.
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
    beginning: Callable[[], bytes] | None = None,
) -> None:
    """Writes a file in the same way as `write_atomically`, but the content comes in parts.

    Args:
        path: The path of the file. The folder of the file must exist. An older file at this path is
            replaced.
        parts: The parts of the content, in order.
        durable: True to wait until the file is on the disk, as in `write_atomically`.
        mode: The permissions of the file, as in `write_atomically`.
        new: True to raise an error if a file already exists at this path; False to replace the
            file.
        beginning: A function that is called after the last part. The bytes that it returns replace
            as many bytes at the beginning of the file, for example by a checksum of all parts.

    Raises:
        WriteError: If the system cannot write the file. An older file at this path stays
            unchanged, and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with _open_new(temporary, mode) as file:
                for part in parts:
                    file.write(part)
                if beginning is not None:
                    file.seek(0)
                    file.write(beginning())
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
            with contextlib.suppress(OSError):  # the first error is already raised
                temporary.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and the missing folders above it.

    The owner can read, write and enter each new folder, even if the user's umask forbids this.

    Raises:
        WriteError: If a folder cannot be made.
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
    """Makes a folder that only the current user can use; an existing folder is restricted, too.

    Args:
        folder: The path of the folder. The folder above this folder must exist.

    Raises:
        WriteError: If the folder cannot be made, or its permissions cannot be changed.
    """
    with writing(folder):
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != PRIVATE_FOLDER:
            folder.chmod(PRIVATE_FOLDER)


@contextlib.contextmanager
def private_folder_within(folder: Path) -> Iterator[Path]:
    """Makes a folder for a `with` block that only the current user can use, and then removes it.

    A library that makes files of any permissions can write into this folder. Files that are moved
    from it into the folder above keep their content and their permissions.

    Args:
        folder: The folder in which the new folder is made.

    Yields:
        The new folder.

    Raises:
        WriteError: If the folder cannot be made.
    """
    with writing(folder):
        made = tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp")
        make_private_folder(Path(made.name))  # whatever the umask is
    with made as place:
        yield Path(place)


def _open_new(path: Path, mode: int) -> BinaryIO:
    """Opens an empty file for writing, and sets its permissions before any content is written."""
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
    """Appends bytes to a file. Either all bytes are appended, or the file stays unchanged.

    Args:
        path: The path of the file. If the file is missing, it is created.
        content: The bytes to append.

    Raises:
        WriteError: If the system cannot write the bytes. The earlier content of the file stays.
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
    """Waits until all files of a folder are on the disk.

    Call this function after writes with `durable=False`, so that a power failure cannot lose the
    files.

    Raises:
        WriteError: If the operating system cannot write a file to the disk.
    """
    for path in folder.iterdir():
        with writing(path), path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


class HeldError(RuntimeError):
    """An error that says that another process has locked a file or folder."""


class Hold(contextlib.ExitStack):
    """A lock on a file or folder. Only one process at a time can have the lock.

    The lock ends when this object is closed or deleted, or when the process ends. If another file
    replaces a locked file, the lock does not protect the new file. If the file may be replaced,
    lock its folder instead. On a file system without locks, this object does not keep other
    processes out.

    Args:
        path: The path of the file or folder.

    Raises:
        HeldError: If another process has the lock.
        OSError: If the file or folder cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        descriptor = os.open(path, os.O_RDONLY)
        self.callback(os.close, descriptor)
        try:
            _lock(descriptor)
        except BlockingIOError:
            self.close()
            raise HeldError(f"another process has locked {path}") from None
        except OSError:
            return
        # A child process that is being started may have a copy of the descriptor for a moment, so
        # the lock is released explicitly.
        self.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        self.close()


def _lock(descriptor: int) -> None:
    """Locks an open file or folder; tries again, because `is_locked` may look at it right now.

    Raises:
        BlockingIOError: If another process keeps the lock.
    """
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(BETWEEN_TRIES)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk, on systems that can do this."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
