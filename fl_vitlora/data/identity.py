"""Computes the identity of a data set, which shows without decoding whether images have changed.

An identity is a text with a digest. If two starts of a program find the same identity, the two
starts read the same images. The identity of a local folder depends on every file in the folder: its
name, size and place on the disk (device and inode), and the times at which its content and its
status last changed. No program can set the time of the last change of the status. Therefore the
identity also changes if a program writes a file and then restores the time of its content. The
identity of a data set of the hub depends on the fingerprint of the rows and on the files of the
library's cache.

Source: The rules of Git for "racily clean" entries of its index. If a file has just changed, a
further change may get the same time. Therefore a folder with a file that has just changed has no
identity yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DIGITS = "digits"
GIVEN = "given"  # the name of images that a Python program hands in
FOLDER, ROWS = "folder ", "rows "  # prefixes of identities
SETTLED = 1.0  # in seconds; file systems store times in shorter steps

Entry = tuple[str, int, int, int, int, int]  # name, size, device, inode, and the two times in ns
Place = tuple[int, int]  # device and inode


def of_folder(root: Path, settled: float = SETTLED) -> str | None:
    """Returns the identity of a folder with all files in the folder and in its subfolders.

    Hidden files also count, because a table may name a hidden file. Symbolic links are followed.

    Args:
        root: The path of the folder.
        settled: A number of seconds. If a file has changed in the last `settled` seconds, the
            folder has no identity yet.

    Returns:
        The identity, or None if the status of a file cannot be read, or if a file was changed
        within `settled` seconds.
    """
    try:
        status = root.stat()
        entries = sorted(_entries(root, "", frozenset([(status.st_dev, status.st_ino)])))
    except OSError:
        return None
    newest = max((entry[-1] for entry in entries), default=0)
    if newest > time.time_ns() - settled * 1e9:
        return None
    return FOLDER + _digest([str(root.resolve()), entries])


def of_rows(splits: Mapping[str, Any], column: str) -> str | None:
    """Returns the identity of the rows of a data set of the library `datasets`.

    Args:
        splits: A mapping from the name of each split to the rows of the split.
        column: The name of the image column.

    Returns:
        The identity. If a row has the name of a file instead of the bytes of an image, the result
        is None, because the rows do not show whether the file has changed.
    """
    described = []
    for name, rows in splits.items():
        if column not in rows.column_names:
            continue
        if not _holds_all_bytes(rows, column):
            return None
        files = [_entry(file["filename"]) for file in rows.cache_files]
        described.append([name, rows._fingerprint, files])  # not public in the library
    return ROWS + _digest(described)


def is_unchanged(identity: str, root: Path) -> bool:
    """Returns True if a data set still has the same identity as before.

    For a data set of the hub the result is always True, because the library stores another revision
    in other files.

    Args:
        identity: The identity that the data set had.
        root: The path of the folder, if the data set is a local folder.
    """
    return not identity.startswith(FOLDER) or of_folder(root) == identity


def _entries(folder: Path | str, name: str, above: frozenset[Place]) -> Iterator[Entry]:
    """Yields an entry for each file in a folder and its subfolders; follows no cycle of links.

    Args:
        folder: The path of the folder.
        name: The path of the folder relative to the listed folder, with a "/" at its end.
        above: The places of this folder and of all folders that contain this folder.
    """
    with os.scandir(folder) as found:
        for item in found:
            try:
                status = item.stat()
            except FileNotFoundError:  # a broken link
                status = item.stat(follow_symlinks=False)
            place = (status.st_dev, status.st_ino)
            if not item.is_dir():
                yield _described(f"{name}{item.name}", status)
            elif place not in above:
                yield from _entries(item.path, f"{name}{item.name}/", above | {place})


def _entry(path: str) -> Entry:
    return _described(path, os.stat(path))  # noqa: PTH116


def _described(name: str, status: os.stat_result) -> Entry:
    return (
        os.fsencode(name).hex(),  # a name may contain bytes that are not text
        status.st_size,
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _holds_all_bytes(rows: Any, column: str) -> bool:
    """Returns True if each row holds the bytes of its image."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in rows.data.column(column).chunks:
        held = pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk
        is_binary = pa.types.is_binary(held.type) or pa.types.is_large_binary(held.type)
        if not is_binary or held.null_count:
            return False
    return True


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
