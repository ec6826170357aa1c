"""Evenly spaced levels on both sides of zero: -L … 0 … L, in units of (scale of a block) / L.

Rounding is either to the nearest level or stochastic. Stochastic rounding goes up to the next level
with a probability equal to the distance from the level below. Therefore the mean of the rounded
numbers is the exact number.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.communication.codecs.bits import Symbols
from fl_vitlora.communication.codecs.blocks import spread
from fl_vitlora.communication.codecs.codec import Floats


def to_symbols(
    blocks: Floats, scales: Floats, levels: int, draw: np.random.Generator | None
) -> Symbols:
    """Rounds scalars to levels, and returns the levels as symbols (numbers from 0).

    Args:
        blocks: The blocks (m, block). Scalars are clipped to the range from minus to plus the scale
            of their block.
        scales: The scales (m,); the scale of a block of zeros is 0.
        levels: The number L of levels on each side of zero, at most 127.
        draw: The generator of random numbers for stochastic rounding; None rounds to the nearest
            level.

    Returns:
        The symbols (m·block,), each a level plus L.

    Example:
        >>> to_symbols(np.float32([[-8.0, 0.1, 3.0]]), np.float32([8.0]), 7, None).tolist()
        [0, 7, 10]
    """
    steps = blocks / np.where(scales > 0, scales, np.float32(1))[:, None]
    steps *= np.float32(levels)
    if draw is None:
        np.rint(steps, out=steps)
    else:
        steps += draw.random(steps.shape, dtype=np.float32)
        np.floor(steps, out=steps)
    np.clip(steps, -levels, levels, out=steps)
    return (steps + np.float32(levels)).astype(np.uint8).reshape(-1)


def to_values(symbols: Symbols, scales: Floats, levels: int, block: int) -> Floats:
    """Returns the scalars that symbols stand for.

    Args:
        symbols: The symbols (n,), each a level plus L.
        scales: The scales (m,) of the blocks.
        levels: The number L of levels on each side of zero.
        block: The number of scalars of a block.

    Returns:
        The scalars (n,), each a level times the scale of its block.

    Example:
        >>> to_values(np.uint8([0, 7, 10]), np.float32([7.0]), 7, 3).tolist()
        [-7.0, 0.0, 3.0]
    """
    steps = symbols.astype(np.float32) - np.float32(levels)
    steps *= spread(scales / np.float32(levels), block, len(symbols))
    return steps
