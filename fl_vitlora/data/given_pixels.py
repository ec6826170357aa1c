"""Converts images that a Python program hands in: images of Pillow, arrays and tensors.

Letters in shapes: H × W pixels, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.data.depth import is_deep, scale, to_8_bits
from fl_vitlora.data.pixels import Look, opaque
from fl_vitlora.errors import UserError

CHANNELS = (1, 3)


def to_rgb(image: Any, look: Look) -> Any:
    """Converts an image or an array to an RGB image of Pillow with 8 bits per channel.

    Args:
        image: An image of Pillow, or an array of bytes, (H, W), (H, W, C) or (C, H, W). An array of
            other numbers is taken only if `look` states the range of its values.
        look: The settings for the conversion.

    Raises:
        UserError: If the type, the shape or the range of the values is not understood.
    """
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image)
        if is_deep(turned.mode):
            return Image.fromarray(to_8_bits(turned, image, look.pixel_range)).convert("RGB")
        return opaque(turned, look.background)
    if isinstance(image, Tensor):
        own = image.detach().cpu()
        image = (own.float() if own.dtype == torch.bfloat16 else own).numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(
            "expected an image of Pillow, or an array or a tensor of bytes (uint8), got a value of "
            f"the type {type(image).__name__}"
        )
    rows = _bytes_of(_channels_last(image), look)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (*rows.shape[:2], 3))))


def _channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """Returns an array as (H, W, C).

    Raises:
        UserError: If it is not clear which dimension has the channels.
    """
    shape = values.shape
    said = f"got the shape {shape}"
    if values.ndim == 2 and min(shape) > max(CHANNELS):
        return values[:, :, None]
    if values.ndim == 3 and min(shape) > 0:
        last, first = shape[2] in CHANNELS, shape[0] in CHANNELS
        if last and first:
            raise UserError(
                f"expected (H, W, C) or (C, H, W), {said}, which may be both; hand in images of "
                "Pillow"
            )
        if last or first:
            return values if last else values.transpose(1, 2, 0)
    raise UserError(f"expected (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels C, {said}")


def _bytes_of(values: NDArray[Any], look: Look) -> NDArray[np.uint8]:
    """Returns pixels as bytes.

    Raises:
        UserError: If the numbers are no bytes and no range is stated, or if a number lies outside
            the range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uif":
        raise UserError(f"expected numbers, got {values.dtype}")
    if not look.pixel_range:
        raise UserError(
            f"the pixels are {values.dtype} from {values.min():g} to {values.max():g}, not bytes; "
            "say which values are black and white: data.pixel_range=[LOW, HIGH]"
        )
    low, high = look.pixel_range
    if not (values.min() >= low and values.max() <= high):
        raise UserError(
            f"the pixels go from {values.min():g} to {values.max():g}, outside of "
            f"data.pixel_range=[{low:g}, {high:g}]"
        )
    return scale(values, low, high)
