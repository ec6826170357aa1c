"""From a stored image to RGB pixels of 8 bits: depth, transparency, size.

Eight bits a channel are taken as they are. More bits are scaled as the format says, or refused if
it does not say: a conversion by the imaging library would clip them without a word.

H × W pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Part
from fl_vitlora.data.images import Indices
from fl_vitlora.data.listing import is_dicom
from fl_vitlora.errors import UserError

ROWS_AT_ONCE = 64  # images that are in memory together, not decoded yet
FORMATS = (  # that nothing but the imaging library reads; EPS, for one, starts another program
    ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
)
DEEP = ("I", "F")  # modes of 32 bits
FULL_16 = 65535.0
DARK_16 = 4096  # an image of 16 bits that stays below this holds 12 bits, most likely
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of TIFF


@dataclass(frozen=True, kw_only=True)
class Look:
    """How images are made to fit the model.

    Attributes:
        fit: What becomes of images with another aspect ratio: squashed, cropped or padded.
        background: The colour behind transparent images and beside padded ones.
        pixel_range: The values that become black and white, for more than 8 bits; () is unknown.
    """

    fit: Literal["squash", "crop", "pad"] = "squash"
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_range: tuple[float, ...] = ()


def look_of(config: DataConfig) -> Look:
    """Gathers the settings about pixels; one grey level stands for three colours."""
    red, *others = config.background
    green, blue = others or (red, red)
    return Look(
        fit=config.fit, background=(red, green, blue), pixel_range=tuple(config.pixel_range)
    )


def read_pixels(part: Part, look: Look, positions: Indices, height: int, width: int) -> Tensor:
    """Reads images.

    Args:
        part: Gives the images at positions, as they are stored.
        look: How images are made to fit.
        positions: Of the images.
        height: H.
        width: W.

    Returns:
        uint8 (len(positions), 3, H, W).

    Raises:
        UserError: When an image cannot be read; it names the image.
    """
    pixels = np.empty((len(positions), 3, height, width), dtype=np.uint8)
    for start in range(0, len(positions), ROWS_AT_ONCE):
        for number, stored in enumerate(part.fetch(positions[start : start + ROWS_AT_ONCE]), start):
            try:
                image = _decode(stored, part.mode, look)
            except UserError as error:
                raise UserError(f"image {stored.name}: {error}") from None
            except Exception as error:  # Pillow's, of any kind, a decompression bomb's among them
                raise UserError(
                    f"image {stored.name} cannot be read: {first_line(error)}"
                ) from None
            pixels[number] = np.asarray(_fitted(image, height, width, look)).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def first_line(error: Exception) -> str:
    """Tells an error of another library in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps a range of values to 0 to 255, and what is beyond to its ends.

    Example:
        >>> scale(np.array([0.0, 32768.0, 65535.0, 70000.0]), 0, 65535).tolist()
        [0, 128, 255, 255]
    """
    share = (values.astype(np.float64) - low) / (high - low)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def expect_full_range(values: NDArray[Any], bits: str = "16 bits") -> None:
    """Refuses an image of 16 bits that looks as if it held fewer, as 12 bits of a scanner."""
    brightest = int(values.max(initial=0))
    if 0 < brightest < DARK_16:
        raise UserError(
            f"{bits} a channel, and no value above {brightest} of 65535; say which values are "
            f"black and white: --set data.pixel_range=[0,{'4095'}] for 12 bits, [0,65535] if it is "
            "as dark as that"
        )


def _decode(stored: Encoded, mode: str | None, look: Look) -> Any:
    """Makes an RGB image of a stored one."""
    from PIL import Image, ImageOps

    if stored.path is not None and is_dicom(str(stored.path), stored.path.name):
        from fl_vitlora.data.dicom import read_dicom

        return Image.fromarray(read_dicom(stored.path, look.pixel_range)).convert("RGB")
    source = stored.path if stored.content is None else io.BytesIO(stored.content)
    with Image.open(source, formats=_formats()) as opened:  # type: ignore[arg-type]
        if opened.format == "TIFF" and getattr(opened, "n_frames", 1) > 1:
            raise UserError(f"expected one image, found {opened.n_frames} pages")  # type: ignore[attr-defined]
        depth = _depth(opened)
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode in DEEP or image.mode.startswith("I;"):
            return Image.fromarray(_shallow(image, opened, depth, look)).convert("RGB")
        if depth == 16:
            _expect_shallow(image, look)
        if mode is not None and mode not in DEEP and not mode.startswith("I;"):
            image = image.convert(mode)
        return _opaque(image, look.background)


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _depth(image: Any) -> int:
    """Returns the bits a channel of a file that was opened and not decoded yet."""
    told = str([tile[3] for tile in image.tile])
    return 16 if ";16" in told else 8


def _shallow(image: Any, opened: Any, depth: int, look: Look) -> NDArray[np.uint8]:
    """Scales grey values of more than 8 bits."""
    values = np.asarray(image)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("holds values that are not finite")
    if look.pixel_range:
        low, high = look.pixel_range
    elif opened.format in ("PPM", "JPEG2000") and depth == 16:
        low, high = 0.0, FULL_16
    elif not sixteen:
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise UserError(
            f"holds {kind} from {values.min():g} to {values.max():g}; say which of them are black "
            "and white: --set data.pixel_range=[LOW,HIGH]"
        )
    else:
        expect_full_range(values)
        low, high = 0.0, FULL_16
    grey = scale(values, low, high)
    inverted = getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 255 - grey if inverted else grey


def _expect_shallow(image: Any, look: Look) -> None:
    """Refuses colours of 16 bits, of which 8 are read, if a range is stated or they look dark."""
    if look.pixel_range and tuple(look.pixel_range) != (0.0, FULL_16):
        raise UserError("colours of 16 bits cannot be scaled by data.pixel_range; convert it")
    colours = image.convert("RGB") if image.mode in ("RGB", "CMYK") else image.getchannel(0)
    if not look.pixel_range:
        expect_full_range(np.asarray(colours).astype(np.uint16) * 256, "colours of 16 bits")


def _opaque(image: Any, background: tuple[int, int, int]) -> Any:
    """Puts a transparent image on its background."""
    from PIL import Image

    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    if layer.getextrema()[3] == (255, 255):  # nothing of it is transparent
        return image.convert("RGB")
    below = Image.new("RGBA", layer.size, (*background, 255))
    return Image.alpha_composite(below, layer).convert("RGB")


def _fitted(image: Any, height: int, width: int, look: Look) -> Any:
    from PIL import Image, ImageOps

    if image.size == (width, height):
        return image
    if look.fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if look.fit == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=look.background)
    return image.resize((width, height), Image.Resampling.BICUBIC)
