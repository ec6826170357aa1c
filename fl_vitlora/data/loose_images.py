"""Reads image files that belong to no data set and have no labels, for example to classify them.

n images of H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Part
from fl_vitlora.data.dicom import can_read_dicom
from fl_vitlora.data.images import Indices
from fl_vitlora.data.listing import IMAGE_SUFFIXES, list_folder, suffix_of
from fl_vitlora.data.pixels import look_of, read_pixels
from fl_vitlora.errors import UserError

LOSSY = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".j2k", ".jpx"))


@dataclass(frozen=True, kw_only=True)
class LooseImages:
    """Image files without labels.

    Attributes:
        names: The name of each image: its path relative to the folder in which it was found, or
            the path by which it was named.
        paths: The path of each file, in the same order.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, config: DataConfig, height: int, width: int) -> Tensor:
        """Returns the RGB pixels of all images, uint8 (n, 3, H, W).

        The images are fitted to the size as those of a data set are.

        Args:
            config: The settings of the data, which say how images are fitted.
            height: The height H of the result in pixels.
            width: The width W of the result in pixels.

        Raises:
            UserError: If an image cannot be read; the message names the image.
        """
        part = Part(labels=np.zeros(len(self), dtype=np.int64), names=("",), fetch=self._fetch)
        return read_pixels(part, look_of(config), np.arange(len(self)), height, width)

    def expect_ciphertext(self, height: int, width: int) -> None:
        """Checks that all files can hold ciphertext for images of H × W pixels.

        Ciphertext must not be resized, and a format that loses details changes it.

        Raises:
            UserError: If an image has another size, or its file format is lossy.
        """
        from PIL import Image

        for path in self.paths:
            if suffix_of(path.name) in LOSSY:
                raise UserError(
                    f"image {path}: a format that may lose details cannot hold ciphertext; "
                    "expected PNG"
                )
            try:
                with Image.open(path, formats=["PNG", "BMP", "PPM", "TIFF", "TGA"]) as opened:
                    size = opened.size
            except Exception as error:
                raise UserError(f"image {path} cannot be read as ciphertext: {error}") from None
            if size != (width, height):
                raise UserError(
                    f"image {path}: expected ciphertext of {height} × {width} pixels (height × "
                    f"width), found {size[1]} × {size[0]}; ciphertext cannot be resized"
                )

    def _fetch(self, positions: Indices) -> list[Encoded]:
        chosen = [self.paths[position] for position in positions.tolist()]
        return [Encoded(name=str(path), path=path) for path in chosen]


def find_images(places: Sequence[Path]) -> LooseImages:
    """Finds image files: the files that are named, and all in the folders that are named.

    Args:
        places: The paths of files and folders. Folders are searched with their subfolders.

    Raises:
        UserError: If a path does not exist, a folder contains no image, or a file is no image.
    """
    names, paths = list[str](), list[Path]()
    for place in places:
        if place.is_dir():
            found = list_folder(place, dicom=can_read_dicom()).images
            if not found:
                raise UserError(f"{place}: expected images in this folder, found none")
            names += [file.name for file in found]
            paths += [place / file.name for file in found]
        elif place.is_file():
            _expect_image(place)
            names.append(str(place))
            paths.append(place)
        else:
            raise UserError(f"{place}: no such file or folder")
    return LooseImages(names=tuple(names), paths=tuple(paths))


def _expect_image(path: Path) -> None:
    if suffix_of(path.name) not in IMAGE_SUFFIXES | {".dcm", ".dicom"}:
        raise UserError(f"{path}: expected an image, or a folder of images")
