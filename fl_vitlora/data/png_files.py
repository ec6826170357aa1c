"""Writes images of a shard as PNG files: ciphertext to look at, or the owner's plain images.

PNG is a lossless format, so ciphertext in PNG files is still ciphertext after reading.

Letters in shapes: n images of H × W pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from fl_vitlora.data.images import Images, Indices
from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import PRIVATE, PUBLIC, make_folder, write_atomically

FASTEST = 1  # the level of compression; ciphertext can hardly be compressed
LONGEST = 200  # bytes of the name of a folder, with room for a number
FORBIDDEN = frozenset('/\\:*?"<>|')  # some systems forbid these characters in names of files
Named = Iterator[tuple[str, Tensor]]  # the path of a file below the folder, and an image


def write_pngs(folder: Path, images: Named, *, private: bool) -> int:
    """Writes images as PNG files, each completely or not at all.

    Args:
        folder: The folder for the files. Missing folders are made.
        images: The path of each file below the folder, and the image, uint8 (3, H, W).
        private: True if only the current user may read the files.

    Returns:
        The number of files.
    """
    from PIL import Image

    made, number = set[Path](), 0
    for name, image in images:
        path = folder / name
        if path.parent not in made:
            make_folder(path.parent)
            made.add(path.parent)
        buffer = io.BytesIO()
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=FASTEST)
        mode = PRIVATE if private else PUBLIC
        write_atomically(path, buffer.getvalue(), durable=False, mode=mode)
        number += 1
    return number


def names_by_class(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Returns the path of a file for each image: a folder with the name of the class, and a number.

    Args:
        labels: The label of each image.
        class_names: The name of each class, which may come from a file of somebody else.

    Raises:
        UserError: If a label has no name.

    Example:
        >>> names_by_class([1, 0], ["cat", "../dog"])
        ['.._dog/00000.png', 'cat/00001.png']
    """
    folders = _folders(class_names)
    wrong = [label for label in labels if not 0 <= label < len(folders)]
    if wrong:
        raise UserError(
            f"an image has the label {wrong[0]}, but the list of class names covers only 0 to "
            f"{len(folders) - 1}"
        )
    return [f"{folders[label]}/{number:05d}.png" for number, label in enumerate(labels)]


def names_of_files(images: Images, positions: Indices, root: Path, part: str) -> list[str]:
    """Returns the path of a PNG file for each image, with the name that the image's own file has.

    An image without a file of its own, for example a row of a table, is named by its class and its
    position.

    Args:
        images: The images of a data set.
        positions: The positions of the images to name.
        root: The folder of the data set.
        part: The use of the images, with which the names of images without files begin.
    """
    known = ["" for _ in positions] if images.names is None else images.names(positions)
    labels = images.labels[positions].tolist()
    numbered = names_by_class(labels, images.class_names)
    taken, found = set[str](), []
    for name, other in zip(known, numbered, strict=True):
        below = _below(root, name)
        chosen = f"{part}/{other}" if below is None else str(below.with_suffix(".png"))
        if chosen.lower() in taken and below is not None:  # photo.jpg beside photo.png
            chosen = f"{below}.png"
        taken.add(chosen.lower())
        found.append(chosen)
    return found


def _below(root: Path, name: str) -> PurePosixPath | None:
    """Returns the path of a file relative to a folder; None if the folder has no such file."""
    path = Path(os.path.normpath(name)) if name else root
    start = Path(os.path.normpath(root))
    if path == start or not path.is_relative_to(start) or not path.is_file():
        return None
    return PurePosixPath(path.relative_to(start).as_posix())


def _folders(class_names: Sequence[str]) -> list[str]:
    """Returns a different name of a folder for each class, safe on every system."""
    folders, taken = [], set[str]()
    for label, name in enumerate(class_names):
        safe = "".join("_" if c in FORBIDDEN or not c.isprintable() else c for c in name).strip(" ")
        safe = safe.encode()[:LONGEST].decode(errors="ignore")
        if safe.strip(".") == "" or safe.lower() in taken:
            safe = f"{safe.strip('.')}class-{label}"
        taken.add(safe.lower())
        folders.append(safe)
    return folders
