"""The folder of several runs, which one process at a time may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import (
    HeldError,
    Hold,
    WriteError,
    make_folder,
    write_atomically,
    writing,
)


def hold_folder(folder: Path, what: str, work: str) -> Hold:
    """Makes a folder or opens an existing folder, and locks it.

    Args:
        folder: The folder.
        what: A noun for the folder in error messages, for example "grid folder".
        work: A noun for the work in the folder, for error messages, for example "search".

    Returns:
        A lock. Until the lock is closed, no other process can use the folder.

    Raises:
        UserError: If the folder cannot be made, or is locked by another process.
    """
    try:
        make_folder(folder)
        with writing(folder):
            return Hold(folder)
    except WriteError as error:
        raise UserError(f"{what} {error}; choose another folder: --out FOLDER") from None
    except HeldError:
        raise UserError(
            f"{what} {folder}: another process runs this {work}; wait until that process has ended"
        ) from None


def store(path: Path, tree: Mapping[str, Any], what: str) -> None:
    """Writes nested plain values to a YAML file in such a folder.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        write_atomically(path, write_yaml(tree))
    except WriteError as error:
        raise UserError(f"{what} {error}; choose another folder: --out FOLDER") from None
