"""Converts stored images to RGB pixels of 8 bits per channel and a fixed size.

Images of 8 bits per channel keep their values. Images of more bits are scaled to 8 bits with the
range of values that their file format states. If the format does not state a range, an error is
raised (`data.depth`).

Letters in shapes: H × W pixels.
"""

from __future__ import annotations

import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Part
from fl_vitlora.data.depth import (
    MAYBE_FEWER,
    expect_readable_colours,
    has_16_bits,
    is_deep,
    to_8_bits,
)
from fl_vitlora.data.images import Indices
from fl_vitlora.data.listing import is_dicom
from fl_vitlora.errors import UserError

LOOKED_AT = 8  # the number of images whose depth is checked before all images are read
ROWS_AT_ONCE = 64  # the largest number of encoded images in memory at the same time
FORMATS = (  # formats that Pillow reads without another program, unlike EPS for example
    ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
)
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True, kw_only=True)
class Look:
    """The settings for the conversion of images to the input pixels of the model.

    Attributes:
        fit: The treatment of images whose ratio of height to width is not H / W. With "squash" the
            images are stretched, with "crop" their edges are cut off, and with "pad" borders are
            added.
        background: The RGB colour behind transparent pixels and around padded images.
        pixel_range: The two values that become black and white in images of more than 8 bits; () if
            the settings do not state these values.
    """

    fit: Literal["squash", "crop", "pad"] = "squash"
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_range: tuple[float, ...] = ()


def look_of(config: DataConfig) -> Look:
    """Returns the settings for the conversion of images.

    Args:
        config: The settings of the data, which contain these settings. If the background is only
            one number, the number is a grey level.
    """
    red, *others = config.background
    green, blue = others or (red, red)
    return Look(
        fit=config.fit, background=(red, green, blue), pixel_range=tuple(config.pixel_range)
    )


def read_pixels(part: Part, look: Look, positions: Indices, height: int, width: int) -> Tensor:
    """Reads and converts the images at some positions of a split, on all processors.

    The function uses threads, because Pillow releases Python's lock while Pillow decodes and
    resizes. At most `ROWS_AT_ONCE` encoded images are in memory at the same time, and one decoded
    image for each processor.

    Args:
        part: The split that contains the images.
        look: The settings for the conversion.
        positions: The positions of the images in the split.
        height: The height H of the result in pixels.
        width: The width W of the result in pixels.

    Returns:
        The RGB pixels, uint8 (len(positions), 3, H, W).

    Raises:
        UserError: When an image cannot be read. The message names the image.
    """
    pixels = np.empty((len(positions), 3, height, width), dtype=np.uint8)

    def convert(number: int, stored: Encoded) -> None:
        image = fitted(_decoded(stored, part.mode, look), height, width, look)
        pixels[number] = np.asarray(image).transpose(2, 0, 1)

    _formats()  # loads the plugins of Pillow before several threads need them
    with ThreadPoolExecutor(_processors()) as pool:
        for start in range(0, len(positions), ROWS_AT_ONCE):
            stored = part.fetch(positions[start : start + ROWS_AT_ONCE])
            for _ in pool.map(convert, itertools.count(start), stored):
                pass  # raises the error of the first image that cannot be read
    return torch.from_numpy(pixels)


def tell_depth(part: Part, look: Look) -> str | None:
    """Checks a few images of a split; returns a note if 16-bit images do not use their upper bits.

    Args:
        part: The split that contains the images.
        look: The settings for the conversion. If `look` has a range of pixel values, no note is
            returned.

    Returns:
        A note for the user, or None if there is no such problem.
    """
    from PIL import Image

    brightest = []
    for stored in part.fetch(np.linspace(0, len(part) - 1, LOOKED_AT).astype(np.int64)):
        try:
            source = stored.path if stored.content is None else io.BytesIO(stored.content)
            with Image.open(source, formats=_formats()) as image:  # type: ignore[arg-type]
                if image.mode.startswith("I;16"):
                    brightest.append(int(np.asarray(image).max()))
        except Exception:
            continue
    if look.pixel_range or not brightest or max(brightest) >= MAYBE_FEWER:
        return None
    return (
        f"the checked images of 16 bits have no value above {max(brightest)} of 65535; if the "
        "values have fewer bits, set the range: --set 'data.pixel_range=[LOW,HIGH]'"
    )


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error, cut to 200 characters.

    Args:
        error: The error that another library raised.
    """
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # this function is missing on some systems
    return len(usable(0)) if usable else os.cpu_count() or 1


def _decoded(stored: Encoded, mode: str | None, look: Look) -> Any:
    """Decodes a stored image with `_decode`, and adds the image's name to every error message.

    Raises:
        UserError: When the image cannot be read.
    """
    try:
        return _decode(stored, mode, look)
    except UserError as error:
        raise UserError(f"image {stored.name}: {error}") from None
    except Exception as error:  # Pillow raises many types, also for decompression bombs
        raise UserError(f"image {stored.name} cannot be read: {first_line(error)}") from None


def _decode(stored: Encoded, mode: str | None, look: Look) -> Any:
    """Decodes a stored image to an RGB image of 8 bits.

    Raises:
        UserError: When the file contains several images, or when the range of the pixel values is
            unknown.
    """
    from PIL import Image, ImageOps

    if stored.path is not None and is_dicom(str(stored.path), stored.path.name):
        from fl_vitlora.data.dicom import read_dicom

        return Image.fromarray(read_dicom(stored.path, look.pixel_range)).convert("RGB")
    source = stored.path if stored.content is None else io.BytesIO(stored.content)
    with Image.open(source, formats=_formats()) as opened:  # type: ignore[arg-type]
        if opened.format == "TIFF" and getattr(opened, "n_frames", 1) > 1:
            raise UserError(f"expected one image, found {opened.n_frames} pages")  # type: ignore[attr-defined]
        sixteen = has_16_bits(opened)
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if is_deep(image.mode):
            grey = to_8_bits(image, opened, look.pixel_range)
            return Image.fromarray(grey).convert("RGB")
        if sixteen:
            expect_readable_colours(image, look.pixel_range)
        if mode is not None and not is_deep(mode):
            image = image.convert(mode)
        return opaque(image, look.background)


@cache
def _formats() -> tuple[str, ...]:
    """Returns the formats in `FORMATS` that the installed version of Pillow can read."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def opaque(image: Any, background: tuple[int, int, int]) -> Any:
    """Returns an image as RGB, with the background colour behind its transparent pixels.

    Args:
        image: An image of the library Pillow, of at most 8 bits per channel.
        background: The red, green and blue of the background.
    """
    from PIL import Image

    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    if layer.getextrema()[3] == (255, 255):  # no pixel is transparent
        return image.convert("RGB")
    below = Image.new("RGBA", layer.size, (*background, 255))
    return Image.alpha_composite(below, layer).convert("RGB")


def fitted(image: Any, height: int, width: int, look: Look) -> Any:
    """Resizes an image to H × W pixels by stretching, cropping or padding.

    Args:
        image: An RGB image of the library Pillow.
        height: The height H of the result in pixels.
        width: The width W of the result in pixels.
        look: The settings for the conversion.
    """
    from PIL import Image, ImageOps

    if image.size == (width, height):
        return image
    if look.fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if look.fit == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=look.background)
    return image.resize((width, height), Image.Resampling.BICUBIC)
