"""A journal is a file that grows line by line; a mark says which part of the file is valid.

A mark consists of the length and the digest of the file at some moment. When a run resumes from a
mark, the lines written after that moment are removed. The lines before that moment must be
unchanged.
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
    """The length and the digest of a journal at some moment.

    Attributes:
        length: Length of the file in bytes.
        digest: SHA-256 digest of the file's bytes, in hexadecimal digits.
    """

    length: int = 0
    digest: str = hashlib.sha256().hexdigest()


class Journal:
    """A file to which lines of JSON are appended.

    Args:
        path: Path of the journal's file. If `mark` is None, this class empties the file first.
        mark: Length and digest of the part of the file that stays; later lines are removed.
        mode: Permissions of a new file; see `write_atomically`.

    Raises:
        DamagedFileError: If the content of the file up to the mark has changed.
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
        """Appends values to the journal; each value is stored as one line of JSON."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        append(self._path, data)
        self._digest.update(data)
        self._length += len(data)

    def lines(self) -> list[Any]:
        """Returns the values that the lines contain."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def mark(self) -> Mark:
        """Waits until the whole journal is on the disk, and returns the current mark.

        Raises:
            WriteError: If the journal cannot be written to the disk.
        """
        with writing(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())
        return Mark(length=self._length, digest=self._digest.hexdigest())

    def _take_up(self, mark: Mark) -> None:
        """Checks the file against a mark, and removes the lines after the mark.

        Raises:
            DamagedFileError: If the content of the file up to the mark has changed.
        """
        try:
            good = self._path.read_bytes()[: mark.length]
        except FileNotFoundError:
            good = b""
        self._digest.update(good)
        self._length = len(good)
        if Mark(length=self._length, digest=self._digest.hexdigest()) != mark:
            raise DamagedFileError(
                self._path, "is damaged: it differs from what the checkpoint recorded"
            )
        os.truncate(self._path, mark.length)
