"""bfloat16: the upper half of a float32, with the same range but only 8 significant bits.

Source: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", arXiv 1905.12322.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.communication.codecs.codec import Floats

Halves = NDArray[np.uint16]

LARGEST = np.uint32(0x7F7F)  # the largest finite bfloat16; larger values are clipped to it
SIGN = np.uint32(0x8000)


def nearest(values: Floats) -> Halves:
    """Rounds to the nearest bfloat16, in halfway cases to an even one, and never to infinity.

    Args:
        values: Finite numbers.

    Returns:
        The upper halves of the rounded float32 numbers, in the shape of ``values``.

    Example:
        >>> widened(nearest(np.float32([1.0, 1.01, -3.4e38]))).tolist()
        [1.0, 1.0078125, -3.3895313892515355e+38]
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return _finite((bits + (even + np.uint32(0x7FFF))) >> np.uint32(16))


def upward(values: Floats) -> Halves:
    """Rounds up to the next bfloat16 that is not smaller, but never to infinity.

    Args:
        values: Finite numbers that are not negative.

    Returns:
        The upper halves of the rounded float32 numbers, in the shape of ``values``.

    Example:
        >>> widened(upward(np.float32([0.0, 1.0, 1.001]))).tolist()
        [0.0, 1.0, 1.0078125]
    """
    bits = np.ascontiguousarray(values).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return _finite((bits + np.uint32(0xFFFF)) >> np.uint32(16))


def widened(halves: Halves) -> Floats:
    """Converts bfloat16 numbers to float32; their values stay exactly the same.

    Args:
        halves: The upper halves of float32 numbers.

    Returns:
        The float32 values, in the shape of ``halves``.
    """
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _finite(halves: NDArray[np.uint32]) -> Halves:
    """Replaces infinities by the largest finite number of the same sign."""
    magnitude = np.minimum(halves & ~SIGN, LARGEST)
    finite: Halves = (magnitude | (halves & SIGN)).astype(np.uint16)
    return finite
