"""Finds the image files that a data set names, which must be in the folders of this data set.

A path in a table may lead anywhere: to a web address (URL), to a private file or to a device. If
the program opened any path, the table could make the program contact a server, or use a private
file as a training image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fl_vitlora.errors import UserError, shown

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*://)|.*::")  # also zip://a::http://b


def resolve_inside(name: str, starts: Sequence[Path], folders: Sequence[Path], where: str) -> Path:
    """Finds the file that a data set names.

    Args:
        name: The path that the data set states.
        starts: The folders to which a relative path may refer. The first folder of `starts` that
            contains the file is used.
        folders: The folders that may contain files of the data set. The first of these folders is
            the data set's own folder.
        where: The description of the row that contains the path, for error messages.

    Returns:
        The path of the file, without symbolic links.

    Raises:
        UserError: When the path is a web address, when it leads outside of the folders, or when the
            file does not exist.
    """
    if ADDRESS.match(name):
        raise UserError(
            f"{where}: {shown(name)} is a web address (URL); images are read only from files of "
            "the data set; download the images first"
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
    except (OSError, RuntimeError):  # the name is not possible for a file, or links form a cycle
        inside, found = list(starts), []
    if not inside:
        raise UserError(
            f"{where}: {shown(name)} leads outside of the data set's folder {folders[0]}; put all "
            "images into this folder"
        )
    if not found:
        raise UserError(f"{where}: there is no file {shown(name)} in {folders[0]}")
    return found[0]
