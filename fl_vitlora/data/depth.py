"""More than 8 bits a channel: scaled as the format says, or refused if it does not say.

A conversion by the imaging library would clip such values without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.errors import UserError

FULL = 65535.0  # of 16 bits
DARK = 4096  # an image of 16 bits that stays below this holds 12 bits, most likely
MAYBE_FEWER = 16384  # images of 16 bits that stay below this may hold 14 bits
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of TIFF


def scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps a range of values to 0 to 255, and what is beyond to its ends.

    Example:
        >>> scale(np.array([0.0, 32768.0, 65535.0, 70000.0]), 0, 65535).tolist()
        [0, 128, 255, 255]
    """
    share = (values.astype(np.float64) - low) / (high - low)
    scaled: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def is_deep(mode: str) -> bool:
    """Tells whether Pillow's mode has more than 8 bits.

    Example:
        >>> is_deep("I;16"), is_deep("F"), is_deep("RGB")
        (True, True, False)
    """
    return mode in ("I", "F") or mode.startswith("I;")


def has_16_bits(image: Any) -> bool:
    """Tells whether a file that was opened, and not decoded yet, has 16 bits a channel."""
    return any(";16" in str(tile[3]) for tile in image.tile)


def to_8_bits(image: Any, opened: Any, pixel_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Scales grey values of more than 8 bits.

    Args:
        image: With such values.
        opened: The file that it came from, which knows its format.
        pixel_range: The values that become black and white; () if it is not stated.

    Returns:
        uint8 (H, W).

    Raises:
        UserError: When the format does not say what is black and white.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("holds values that are not finite")
    if pixel_range:
        low, high = pixel_range
    else:
        low, high = 0.0, FULL
        _expect_known_range(values, image.mode, opened.format)
    grey = scale(values, low, high)
    inverted = getattr(opened, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 255 - grey if inverted else grey


def expect_readable_colours(image: Any, pixel_range: tuple[float, ...]) -> None:
    """Refuses colours of 16 bits, of which 8 are read, if a range is stated or they look dark."""
    if pixel_range and tuple(pixel_range) != (0.0, FULL):
        raise UserError("colours of 16 bits cannot be scaled by data.pixel_range; convert it")
    colours = image.convert("RGB") if image.mode in ("RGB", "CMYK") else image.getchannel(0)
    if not pixel_range:
        _expect_full_range(np.asarray(colours).astype(np.uint16) * 256, "colours of 16 bits")


def _expect_known_range(values: NDArray[Any], mode: str, form: str) -> None:
    if form == "PPM":  # says its own maximum, and Pillow has scaled by it
        return
    if mode.startswith("I;16") or (mode == "I" and form == "PNG"):
        _expect_full_range(values, "16 bits")
        return
    kind = "floating-point numbers" if mode == "F" else "integers of 32 bits"
    raise UserError(
        f"holds {kind} from {values.min():g} to {values.max():g}; say which of them are black "
        "and white: --set 'data.pixel_range=[LOW,HIGH]'"
    )


def _expect_full_range(values: NDArray[Any], bits: str) -> None:
    """Refuses an image of 16 bits that looks as if it held fewer, as 12 bits of a scanner."""
    brightest = int(values.max(initial=0))
    if 0 < brightest < DARK:
        raise UserError(
            f"{bits} a channel, and no value above {brightest} of 65535; say which values are "
            "black and white: --set 'data.pixel_range=[0,4095]' for 12 bits, '[0,65535]' if it is "
            "as dark as that"
        )
