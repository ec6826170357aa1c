"""Reads images in DICOM, the file format of hospitals, with the optional package `pydicom`.

A DICOM file states what its pixel values mean: the number of stored bits, the sign, the rescale
slope and intercept, and whether small values are white (MONOCHROME1).

Letters in shapes: H × W pixels.
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
    """Returns True if the optional package `pydicom` is installed."""
    return importlib.util.find_spec("pydicom") is not None


def read_dicom(path: Path, pixel_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Reads the pixels of a DICOM file.

    Args:
        path: The path of the file.
        pixel_range: The two rescaled values (for CT images, Hounsfield units) that become black and
            white. If `pixel_range` is (), the full range of the stored bits is used.

    Returns:
        The pixels, uint8 (H, W), or (H, W, 3) for a colour image.

    Raises:
        UserError: When the file has several frames, has no pixels, or has pixels of an unknown
            photometric interpretation.
    """
    import pydicom

    scan = pydicom.dcmread(path)
    if "PixelData" not in scan:
        raise UserError("expected an image, but this DICOM file has no pixels")
    if int(scan.get("NumberOfFrames") or 1) > 1:
        raise UserError(f"expected one image, found {scan.NumberOfFrames} frames")
    kind = str(scan.PhotometricInterpretation)
    values: NDArray[Any] = scan.pixel_array
    if not kind.startswith("MONOCHROME"):
        return _colours(scan, kind, values)
    slope, intercept = float(scan.get("RescaleSlope", 1)), float(scan.get("RescaleIntercept", 0))
    bits, signed = int(scan.BitsStored), bool(scan.PixelRepresentation)
    least = -(2 ** (bits - 1)) if signed else 0
    ends = [slope * value + intercept for value in (least, least + 2**bits - 1)]
    low, high = pixel_range or (min(ends), max(ends))
    grey = scale(values.astype(np.float64) * slope + intercept, low, high)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _colours(scan: Any, kind: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales the pixels of a colour image to 8 bits.

    Raises:
        UserError: When the photometric interpretation `kind` of the pixels is unknown.
    """
    from pydicom.pixels import apply_color_lut

    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, scan)
        return scale(values, 0, np.iinfo(values.dtype).max)
    if kind not in ("RGB", "YBR_FULL", "YBR_FULL_422") or values.ndim != 3:
        raise UserError(
            f"cannot read DICOM pixels of the kind {kind}; expected grey values, RGB, YBR_FULL, "
            "YBR_FULL_422 or PALETTE COLOR"
        )
    return scale(values, 0, 2 ** int(scan.BitsStored) - 1)
