"""Reads image files without labels that belong to no data set, for example for a prediction.

Letters in shapes: n images, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Part
from fl_vitlora.data.depth import has_16_bits
from fl_vitlora.data.dicom import can_read_dicom
from fl_vitlora.data.images import Indices
from fl_vitlora.data.listing import DICOM_SUFFIXES, IMAGE_SUFFIXES, list_folder, suffix_of
from fl_vitlora.data.pixels import look_of, read_pixels
from fl_vitlora.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag that tells viewers to turn an image


@dataclass(frozen=True, kw_only=True)
class LooseImages:
    """Image files without labels.

    Attributes:
        names: The name of each image. If the user named only one folder, this name is the path
            relative to the folder, otherwise the whole path.
        paths: The path of each file, in the order of `names`.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, config: DataConfig, height: int, width: int) -> Tensor:
        """Returns the RGB pixels of all images, uint8 (n, 3, H, W).

        The images are resized in the same way as images of a data set.

        Args:
            config: The settings of the data, which say how images are resized.
            height: The height H of the result in pixels.
            width: The width W of the result in pixels.

        Raises:
            UserError: If an image cannot be read; the message names the image.
        """
        part = Part(labels=np.zeros(len(self), dtype=np.int64), names=("",), fetch=self._fetch)
        return read_pixels(part, look_of(config), np.arange(len(self)), height, width)

    def expect_ciphertext(self, height: int, width: int) -> None:
        """Checks that all files have H × W RGB pixels, which are read without any change.

        Ciphertext must not be resized, turned or converted, and a lossy format would change its
        values.

        Raises:
            UserError: If an image is not a PNG file of this size with 8 bits for each of three
                colours. The error is also raised if an image has transparent pixels, or if a tag
                says that the image must be turned.
        """
        from PIL import Image

        for path in self.paths:
            try:
                with Image.open(path, formats=["PNG"]) as opened:
                    deep = has_16_bits(opened)  # before the image is decoded
                    size, colours = opened.size, opened.mode
                    changed = "transparency" in opened.info
                    changed |= opened.getexif().get(ORIENTATION, 1) != 1
            except Exception:
                raise UserError(f"image {path}: expected ciphertext in a PNG file") from None
            if deep or changed or colours != "RGB":
                raise UserError(
                    f"image {path}: expected ciphertext with 8 bits for each of the colours red, "
                    "green and blue, without transparency and without a tag that turns the image"
                )
            if size != (width, height):
                raise UserError(
                    f"image {path}: expected ciphertext of {height} × {width} pixels (height × "
                    f"width), found {size[1]} × {size[0]}; ciphertext cannot be resized"
                )

    def _fetch(self, positions: Indices) -> list[Encoded]:
        chosen = [self.paths[position] for position in positions.tolist()]
        return [Encoded(name=str(path), path=path) for path in chosen]


def find_images(places: Sequence[Path]) -> LooseImages:
    """Finds image files at the given paths of files, and in the given folders.

    Args:
        places: The paths of files and folders. Folders are searched with their subfolders.

    Raises:
        UserError: If a path does not exist, a folder contains no image, or a file is not an image.
    """
    names, paths = list[str](), list[Path]()
    for place in places:
        if place.is_dir():
            found = list_folder(place, dicom=can_read_dicom()).images
            if not found:
                raise UserError(f"{place}: expected images in this folder, found none")
            alone = len(places) == 1
            names += [file.name if alone else str(place / file.name) for file in found]
            paths += [place / file.name for file in found]
        elif place.is_file():
            _expect_image(place)
            names.append(str(place))
            paths.append(place)
        else:
            raise UserError(f"{place}: no such file or folder")
    return LooseImages(names=tuple(names), paths=tuple(paths))


def _expect_image(path: Path) -> None:
    if suffix_of(path.name) not in IMAGE_SUFFIXES | DICOM_SUFFIXES:
        raise UserError(f"{path}: expected an image, or a folder of images")
