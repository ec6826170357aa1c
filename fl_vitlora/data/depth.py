"""Scales images of more than 8 bits per channel to 8 bits.

Most file formats state which pixel values mean black and white. If the format of an image does not
state these values, the image is refused, because the library Pillow would clip its pixel values
without a warning.

Letters in shapes: H × W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.errors import UserError

FULL = 65535.0  # the largest value of 16 bits
DARK = 4096  # a 16-bit image with only smaller values most likely has values of 12 bits
MAYBE_FEWER = 16384  # a 16-bit image with only smaller values may have values of 14 bits
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # a value of a TIFF tag, and the number of this tag


def scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps values from the range `low` to `high` linearly to 0 to 255, and clips other values.

    Args:
        values: The pixel values, in an array of any shape.
        low: The value that becomes 0 (black).
        high: The value that becomes 255 (white).

    Returns:
        The scaled values, uint8, of the same shape.

    Example:
        >>> scale(np.array([0.0, 32768.0, 65535.0, 70000.0]), 0, 65535).tolist()
        [0, 128, 255, 255]
    """
    share = (values.astype(np.float64) - low) / (high - low)
    scaled: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def is_deep(mode: str) -> bool:
    """Returns True if a mode of Pillow has more than 8 bits per channel.

    Args:
        mode: The colour mode of an image, as the library Pillow names it.

    Example:
        >>> is_deep("I;16"), is_deep("F"), is_deep("RGB")
        (True, True, False)
    """
    return mode in ("I", "F") or mode.startswith("I;")


def has_16_bits(image: Any) -> bool:
    """Returns True if an image has 16 bits per channel.

    Args:
        image: An image that Pillow has opened but not yet decoded.
    """
    return any(";16" in str(tile[3]) for tile in image.tile)


def to_8_bits(image: Any, opened: Any, pixel_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Scales a grey image of more than 8 bits to 8 bits.

    Args:
        image: The decoded grey image of the library Pillow.
        opened: The opened file of the image, from which its format is read.
        pixel_range: The two values that become black and white; () if the settings do not state
            these values.

    Returns:
        The grey values, uint8 (H, W).

    Raises:
        UserError: When neither the settings nor the format states which values are black and white,
            or when a value is not finite.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("expected finite pixel values, found NaN or infinity")
    if pixel_range:
        low, high = pixel_range
    else:
        low, high = 0.0, FULL
        _expect_known_range(values, image.mode, opened.format)
    grey = scale(values, low, high)
    inverted = getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 255 - grey if inverted else grey


def expect_readable_colours(image: Any, pixel_range: tuple[float, ...]) -> None:
    """Checks that a colour image of 16 bits uses the full range of values.

    Pillow keeps only the upper 8 bits of a colour image of 16 bits. Therefore an image whose values
    use only a smaller range cannot be read.

    Args:
        image: The decoded colour image of the library Pillow.
        pixel_range: The two values that become black and white; () if the settings do not state
            these values.

    Raises:
        UserError: When `pixel_range` is not the full range, or when no value uses the upper bits.
    """
    if pixel_range and tuple(pixel_range) != (0.0, FULL):
        raise UserError(
            "data.pixel_range cannot be used for a colour image of 16 bits per channel; convert "
            "the image to 8 bits"
        )
    colours = image.convert("RGB") if image.mode in ("RGB", "CMYK") else image.getchannel(0)
    if not pixel_range:
        _expect_full_range(np.asarray(colours).astype(np.uint16) * 256, "colours of 16 bits")


def _expect_known_range(values: NDArray[Any], mode: str, form: str) -> None:
    """Checks that the format of an image states the range of its values.

    Raises:
        UserError: When the format does not state the range, or when the values seem to use fewer
            bits than the format has.
    """
    if form == "PPM":  # the file states its largest value, and Pillow has scaled the values
        return
    if mode.startswith("I;16") or (mode == "I" and form == "PNG"):
        _expect_full_range(values, "16 bits")
        return
    kind = "floating-point numbers" if mode == "F" else "integers of 32 bits"
    raise UserError(
        f"the pixels are {kind} from {values.min():g} to {values.max():g}, and the file does not "
        "say which values are black and white; set these values: --set "
        "'data.pixel_range=[LOW,HIGH]'"
    )


def _expect_full_range(values: NDArray[Any], bits: str) -> None:
    """Checks that a 16-bit image does not seem to contain values of fewer bits.

    Raises:
        UserError: When all values of the image are small, such as values of a scanner with 12 bits.
    """
    brightest = int(values.max(initial=0))
    if 0 < brightest < DARK:
        raise UserError(
            f"the image has {bits} per channel, but no value above {brightest} of 65535; set the "
            "values of black and white: --set 'data.pixel_range=[0,4095]' if the values have 12 "
            "bits, or '[0,65535]' if the image is really that dark"
        )
