"""A store of shards, so that a second start of the same experiment need not encrypt its images.

The store is a folder with one folder, which is called an entry, for each recipe
(`data.shard_recipe`). The name of an entry is HMAC-SHA256(key, recipe), in hexadecimal digits. The
key is derived from the owner's secret, so nobody can check a guess about the images with the name.
An entry contains the shards, and a file with a list of their names, sizes and SHA-256 digests. The
list ends with an HMAC of the list and of the entry's name. Therefore a person without the key
cannot change a shard or swap two entries unnoticed.

If the file system has hard links, a shard in the store and the same shard in a run folder are two
names of one file. Without hard links, the store and the run folder have separate copies of a shard.
The program never changes a shard in place. The program writes a new file and then renames the new
file. So all other names still lead to the old file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.storage.files import (
    PRIVATE,
    WriteError,
    make_folder,
    make_private_folder,
    sync_folder,
    write_atomically,
    write_parts,
    writing,
)

LIST = "kept.json"
ENTRY = re.compile(r"[0-9a-f]{32}")
UNFINISHED = ".*.tmp"  # the pattern of the names of entries that are being made or removed
ABANDONED = 24 * 3600.0  # in seconds; an older unfinished entry is removed
PIECE = 2**20  # the largest number of bytes in memory while a file is copied

Listed = dict[str, tuple[int, str]]  # a mapping from names of files to sizes in bytes and digests


@dataclass(frozen=True, kw_only=True)
class ShardStore:
    """A store of shards in a folder.

    Attributes:
        folder: The path of the store. When the folder is first needed, the program makes the folder
            and lets only the user read it.
        most: The largest size of all entries together, in bytes. If the store is full, the entries
            that were not used for the longest time are removed first.
    """

    folder: Path
    most: int

    def take(self, recipe: str, key: bytes, target: Path) -> Listed | None:
        """Puts the shards of a recipe into a folder, if the store has undamaged shards.

        The files are verified in the folder `target`, not in the store. Therefore another program
        that replaces files of the store at the same time does no harm. A damaged entry is removed,
        and its files are removed from `target`.

        Args:
            recipe: The recipe of the shards (`shard_recipe`).
            key: The key of the store, 32 bytes.
            target: The folder for the shards, which must exist.

        Returns:
            The list of the files in the folder; None if the store does not have the shards.
        """
        entry = self.folder / name_of(recipe, key)
        if not self._is_own() or not entry.is_dir():
            return None
        listed = _read_list(entry, key)
        placed: list[Path] = []
        try:
            for name in listed or ():
                place(entry / name, target / name)
                placed.append(target / name)
            if listed and _are_as_listed(target, listed):
                os.utime(entry)  # the time of the last use
                return listed
        except (OSError, WriteError):  # another program has removed the entry
            pass
        for path in placed:
            path.unlink(missing_ok=True)
        self._remove(entry)
        return None

    def keep(self, recipe: str, key: bytes, shards: Iterable[Path], keys: Collection[str]) -> bool:
        """Stores shards under their recipe, and removes the oldest entries if the store is full.

        Args:
            recipe: The recipe of the shards (`shard_recipe`).
            key: The key of the store, 32 bytes.
            shards: The paths of the shards.
            keys: The ids of the secrets that encrypt the shards.

        Returns:
            True if the store has the shards now; False if the shards alone are larger than the
            limit of the store.

        Raises:
            WriteError: If the system cannot write the files.
        """
        paths = list(shards)
        if sum(path.stat().st_size for path in paths) > self.most:
            return False
        make_folder(self.folder.parent)
        make_private_folder(self.folder)
        entry = self.folder / name_of(recipe, key)
        unfinished = self._unfinished(entry)
        with writing(entry):
            try:
                unfinished.mkdir(mode=0o700)
                for path in paths:
                    place(path, unfinished / path.name)
                _write_list(unfinished, key, entry.name, keys)
                with suppress(OSError):  # another program has already made the entry
                    unfinished.rename(entry)
                sync_folder(self.folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        self._tidy()
        return True

    def forget(self, keys: Collection[str]) -> int:
        """Removes all entries that are encrypted with one of the given secrets.

        Args:
            keys: The ids of the secrets.

        Returns:
            The number of removed entries.
        """
        gone = [entry for entry in self._entries() if _keys_of(entry) & set(keys)]
        for entry in gone:
            self._remove(entry)
        return len(gone)

    def _entries(self) -> list[Path]:
        """Returns the paths of all entries, the most recently used entry first."""
        if not self._is_own():
            return []
        found = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another program has removed the entry
                if ENTRY.fullmatch(path.name):
                    found[path] = path.stat().st_mtime_ns
        return sorted(found, key=lambda path: found[path], reverse=True)

    def _is_own(self) -> bool:
        """Returns True if the store exists and only the current user can write into it."""
        try:
            status = self.folder.stat()
        except OSError:
            return False
        return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022

    def _tidy(self) -> None:
        """Removes the oldest entries if the store is full, and entries that were never finished."""
        total = 0
        for entry in self._entries():
            total += _size_of(entry)
            if total > self.most:
                self._remove(entry)
        for path in self.folder.glob(UNFINISHED):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)

    def _remove(self, entry: Path) -> None:
        """Removes an entry so that other programs find either the whole entry or no entry."""
        gone = self._unfinished(entry)
        with suppress(OSError):  # another program has removed the entry
            entry.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _unfinished(self, entry: Path) -> Path:
        return self.folder / f".{entry.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def name_of(recipe: str, key: bytes) -> str:
    """Returns the name of the entry of a recipe, which has 32 hexadecimal digits."""
    return hmac.new(key, recipe.encode(), hashlib.sha256).hexdigest()[:32]


def place(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies the file if the file system has no hard links.

    If another file has the second name, it is replaced as a whole.
    """
    between = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    between.unlink(missing_ok=True)
    try:
        os.link(source, between)
    except FileNotFoundError:
        raise
    except OSError:
        write_parts(target, _pieces(source), durable=False, mode=PRIVATE)
        return
    between.replace(target)
    between.unlink(missing_ok=True)  # renaming does nothing if both names lead to the same file


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _digest_of(path: Path) -> tuple[int, str]:
    """Returns the size and the SHA-256 digest of a regular file.

    Raises:
        OSError: If the file does not exist, or is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as file:
        return os.fstat(descriptor).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _digests_of(paths: Iterable[Path]) -> list[tuple[int, str]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's lock
        return list(pool.map(_digest_of, paths))


def _are_as_listed(folder: Path, listed: Mapping[str, tuple[int, str]]) -> bool:
    return _digests_of(folder / name for name in listed) == list(listed.values())


def _write_list(folder: Path, key: bytes, name: str, keys: Collection[str]) -> None:
    """Writes the list of an entry's files, with an HMAC that is computed with the store's key."""
    paths = sorted(folder.iterdir())
    files = dict(zip((path.name for path in paths), _digests_of(paths), strict=True))
    text = json.dumps({"keys": sorted(keys), "files": files}, sort_keys=True)
    write_atomically(folder / LIST, f"{text}\n{_mac(key, name, text)}\n", mode=PRIVATE)


def _read_list(entry: Path, key: bytes) -> Listed | None:
    """Reads the list of an entry's files; returns None if it is damaged or has another key."""
    try:
        text, mac = (entry / LIST).read_text(encoding="utf-8").splitlines()
        if not hmac.compare_digest(mac.encode(), _mac(key, entry.name, text).encode()):
            return None
        files = json.loads(text)["files"]
        listed = {name: (size, digest) for name, (size, digest) in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return listed if all(Path(name).name == name for name in listed) else None


def _keys_of(entry: Path) -> set[str]:
    """Returns the ids of the secrets that encrypt an entry, from the list of the entry."""
    try:
        text = (entry / LIST).read_text(encoding="utf-8").splitlines()[0]
        return set(json.loads(text)["keys"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _mac(key: bytes, name: str, text: str) -> str:
    return hmac.new(key, f"{name}\n{text}".encode(), hashlib.sha256).hexdigest()


def _size_of(entry: Path) -> int:
    total = 0
    with suppress(OSError):  # another program has removed the entry
        for path in entry.iterdir():
            total += path.stat().st_size
    return total
