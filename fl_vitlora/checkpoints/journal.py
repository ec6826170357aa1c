"""A file that only grows, line by line, and of which it is known how much is good.

A mark is its length and its digest at some moment. Whoever goes on from a mark cuts off what came
later, and finds out whether what came before is still what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.storage.checksummed import DamagedFileError
from fl_vitlora.storage.files import PUBLIC, append, write_atomically, writing


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How far a journal was at some moment.

    Attributes:
        length: In bytes.
        digest: SHA-256 of so much of it, in hexadecimal digits.
    """

    length: int = 0
    digest: str = hashlib.sha256().hexdigest()


class Journal:
    """Lines of JSON in a file.

    Args:
        path: The file; it is begun anew, unless it is taken up at a mark.
        mark: Where it is good to; what came later is cut off.
        mode: Permissions of a new file; see `write_atomically`.

    Raises:
        DamagedFileError: When the file does not have what the mark says.
    """

    def __init__(self, path: Path, mark: Mark | None = None, mode: int = PUBLIC) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._length = 0
        if mark is None:
            write_atomically(path, b"", mode=mode)
        else:
            self._take_up(mark)

    def append(self, *lines: Any) -> None:
        """Adds lines, each what JSON can hold."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        append(self._path, data)
        self._digest.update(data)
        self._length += len(data)

    def lines(self) -> list[Any]:
        """Reads all lines."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def mark(self) -> Mark:
        """Waits until all of it is on the disk, and tells how far it is.

        Raises:
            WriteError: When the disk does not take it after all.
        """
        with writing(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())
        return Mark(length=self._length, digest=self._digest.hexdigest())

    def _take_up(self, mark: Mark) -> None:
        try:
            good = self._path.read_bytes()[: mark.length]
        except FileNotFoundError:
            good = b""
        self._digest.update(good)
        self._length = len(good)
        if Mark(length=self._length, digest=self._digest.hexdigest()) != mark:
            raise DamagedFileError(self._path, "is damaged: it is not what the checkpoint says")
        os.truncate(self._path, mark.length)
