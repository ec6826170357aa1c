"""Paths that a data set names are files of its own folder; nothing else is opened.

A table, or a column of a stored data set, may name anything: an address on the network, a private
file, a device. Reading it would call out, or would put that file among the training images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fl_vitlora.errors import UserError, shown

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*://)|.*::")  # also of the library's chains


def resolve_inside(name: str, starts: Sequence[Path], folders: Sequence[Path], where: str) -> Path:
    """Finds the file that a data set names.

    Args:
        name: The path as the data set has it.
        starts: Folders at which a relative path may begin; the first in which it leads to a file.
        folders: Folders that hold the files of the data set, its own first.
        where: The row, for messages.

    Returns:
        The file, without links.

    Raises:
        UserError: When it is an address, lies outside, or is not there.
    """
    if ADDRESS.match(name):
        raise UserError(
            f"{where}: {shown(name)} is an address; images are read from files of the data set "
            "only, download them first"
        )
    if not name.strip() or "\0" in name:
        raise UserError(f"{where}: expected the path of an image, got {shown(name)}")
    try:
        places = [(start / name).resolve() for start in starts]
        inside = [
            place
            for place in places
            if any(place.is_relative_to(folder.resolve()) for folder in folders)
        ]
        found = [place for place in inside if place.is_file()]
    except (OSError, RuntimeError):  # a name that no file can have, or a circle of links
        inside, found = list(starts), []
    if not inside:
        raise UserError(
            f"{where}: {shown(name)} leads outside of the data set's folder {folders[0]}; put the "
            "images in it"
        )
    if not found:
        raise UserError(f"{where}: no file {shown(name)} in {folders[0]}")
    return found[0]
