"""A journal: a file that only grows, line by line, with marks that tell how much of it is valid.

A mark is the length and the digest of the file at some moment. A run that resumes from a mark cuts
off the lines written later, and checks that the earlier ones are unchanged.
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
    """The state of a journal at some moment.

    Attributes:
        length: Length of the file in bytes.
        digest: SHA-256 digest of these bytes, in hexadecimal digits.
    """

    length: int = 0
    digest: str = hashlib.sha256().hexdigest()


class Journal:
    """Lines of JSON in a file.

    Args:
        path: Path of the file. Without a mark the file is emptied.
        mark: Mark from which the journal continues; later lines are cut off.
        mode: Permissions of a new file; see `write_atomically`.

    Raises:
        DamagedFileError: If the file does not agree with the mark.
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
        """Appends lines; each is a value that JSON can hold."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        append(self._path, data)
        self._digest.update(data)
        self._length += len(data)

    def lines(self) -> list[Any]:
        """Returns all lines."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def mark(self) -> Mark:
        """Waits until the whole journal is on the disk, and returns a mark of its state.

        Raises:
            WriteError: If the disk does not store the journal.
        """
        with writing(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())
        return Mark(length=self._length, digest=self._digest.hexdigest())

    def _take_up(self, mark: Mark) -> None:
        """Checks the file against a mark, and cuts off what was written later."""
        try:
            good = self._path.read_bytes()[: mark.length]
        except FileNotFoundError:
            good = b""
        self._digest.update(good)
        self._length = len(good)
        if Mark(length=self._length, digest=self._digest.hexdigest()) != mark:
            raise DamagedFileError(self._path, "is damaged: it does not agree with the checkpoint")
        os.truncate(self._path, mark.length)
