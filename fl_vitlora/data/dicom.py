"""DICOM images, as hospitals have them, through the optional package `pydicom`.

What a file says of its own values is honoured: stored bits, sign, rescale slope and intercept, and
whether small values are white (MONOCHROME1).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.data.depth import scale
from fl_vitlora.errors import UserError

INSTALL = "pip install 'fl_vitlora[dicom]'"


def can_read_dicom() -> bool:
    """Tells whether the optional package is installed."""
    return importlib.util.find_spec("pydicom") is not None


def read_dicom(path: Path, pixel_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Reads a DICOM file.

    Args:
        path: The file.
        pixel_range: The rescaled values (for CT: Hounsfield units) that become black and white; all
            that the stored bits can hold, if it is ().

    Returns:
        uint8 (H, W), or (H, W, 3) for colours.

    Raises:
        UserError: When the file holds several frames, or no pixels.
    """
    import pydicom

    told = pydicom.dcmread(path)
    if "PixelData" not in told:
        raise UserError("this DICOM file holds no pixels")
    if int(told.get("NumberOfFrames") or 1) > 1:
        raise UserError(f"expected one image, found {told.NumberOfFrames} frames")
    kind = str(told.PhotometricInterpretation)
    values: NDArray[Any] = told.pixel_array
    if not kind.startswith("MONOCHROME"):
        return _colours(told, kind, values)
    slope, intercept = float(told.get("RescaleSlope", 1)), float(told.get("RescaleIntercept", 0))
    bits, signed = int(told.BitsStored), bool(told.PixelRepresentation)
    least = -(2 ** (bits - 1)) if signed else 0
    ends = [slope * value + intercept for value in (least, least + 2**bits - 1)]
    low, high = pixel_range or (min(ends), max(ends))
    grey = scale(values.astype(np.float64) * slope + intercept, low, high)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _colours(told: Any, kind: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut

    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, told)
        return scale(values, 0, np.iinfo(values.dtype).max)
    if kind not in ("RGB", "YBR_FULL", "YBR_FULL_422") or values.ndim != 3:
        raise UserError(f"cannot read DICOM pixels of the kind {kind}")
    return scale(values, 0, 2 ** int(told.BitsStored) - 1)
