"""Packing: writes several tensors into one flat float32 buffer after a 20-byte header.

A client stores tensors in this format between rounds, and other Flower mods (client plug-ins) see
tensors in this format. Between client and server, tensors do not have this format, but that of
`compression` and `parcel`.

Client and server build the same model, so names and shapes are not written. Instead the header has
a digest of the names and shapes. A buffer that was made for another model is refused.

Header: magic "FVL1" (4 bytes), digest of the layout (8 bytes), number of scalars (8 bytes, little
endian). Body: the scalars of all tensors in the order of the layout, little endian.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.state import State

MAGIC = b"FVL1"
HEADER = struct.Struct("<4s8sQ")
SCALAR = np.dtype("<f4")


@dataclass(frozen=True)
class Layout:
    """The names and shapes of the exchanged tensors, in order.

    Attributes:
        shapes: The name and the shape of each tensor.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Layout:
        """Returns the layout of the tensors in a state."""
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in state.items()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the tensors, in order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def digest(self) -> bytes:
        """Returns a digest of the layout, 8 bytes long."""
        return _digest(self.shapes)

    @cached_property
    def scalars(self) -> int:
        """Returns the number of scalars of all tensors."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def ending_with(self, endings: tuple[str, ...]) -> frozenset[str]:
        """Returns the tensor names that end with one of the given endings."""
        return frozenset(name for name, _ in self.shapes if name.endswith(endings))

    def empty(self) -> State:
        """Returns tensors with these names and shapes on PyTorch's device "meta" (no memory)."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes}

    def mark(self, names: frozenset[str]) -> bytes:
        """Returns a bit mask with one bit for each tensor of the layout: 1 if it is in `names`.

        Example:
            >>> layout = Layout((("a", ()), ("b", ()), ("c", ())))
            >>> sorted(layout.marked(layout.mark(frozenset({"a", "c"}))))
            ['a', 'c']
        """
        bits = np.array([name in names for name, _ in self.shapes], dtype=np.uint8)
        return np.packbits(bits).tobytes()

    def marked(self, bits: bytes) -> frozenset[str]:
        """Returns the names that are marked in a bit mask from `mark`.

        Raises:
            ValueError: If the mask has the wrong length.
        """
        if len(bits) != -(-len(self.shapes) // 8):
            raise ValueError(
                f"message refused: its bit mask of {len(bits)} bytes does not fit "
                f"{len(self.shapes)} tensors"
            )
        marks = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(self.shapes))
        return frozenset(n for (n, _), one in zip(self.shapes, marks, strict=True) if one)

    def only(self, names: frozenset[str]) -> Layout:
        """Returns the layout of only the tensors with the given names."""
        return Layout(tuple(pair for pair in self.shapes if pair[0] in names))

    def without(self, names: frozenset[str]) -> Layout:
        """Returns the layout of all tensors except those with the given names."""
        return Layout(tuple(pair for pair in self.shapes if pair[0] not in names))

    def shaped(self, scalars: NDArray[np.floating[Any]]) -> State:
        """Cuts a vector into float32 tensors that have the names and shapes of this layout."""
        found, begin = {}, 0
        for name, shape in self.shapes:
            end = begin + math.prod(shape)
            part = np.array(scalars[begin:end], np.float32)  # a copy with its own memory
            found[name] = torch.from_numpy(part.reshape(shape))
            begin = end
        return found


@functools.lru_cache(maxsize=64)
def _digest(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> bytes:
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).digest()


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Writes a state into one buffer.

    Args:
        state: The tensors by name, of any floating type, on the CPU.

    Returns:
        The header and the float32 scalars.

    Example:
        >>> len(pack({"w": torch.zeros(3, 2)}))
        44
    """
    layout = Layout.of(state)
    parts = [tensor.detach().to(torch.float32).numpy().ravel() for tensor in state.values()]
    body = np.concatenate([np.empty(0, SCALAR), *parts], dtype=SCALAR)
    return b"".join((HEADER.pack(MAGIC, layout.digest, layout.scalars), body.data))


def unpack(buffer: bytes, layout: Layout) -> State:
    """Reads a buffer that `pack` wrote.

    Args:
        buffer: The header and the scalars.
        layout: The names and shapes of the expected tensors.

    Returns:
        The tensors by name, float32.

    Raises:
        ValueError: If `pack` did not write the buffer, or if the buffer is cut off or was made for
            other tensors.
    """
    if len(buffer) < HEADER.size or not buffer.startswith(MAGIC):
        raise ValueError("message refused: expected the header of packed tensors at its beginning")
    _, digest, scalars = HEADER.unpack_from(buffer)
    if digest != layout.digest or scalars != layout.scalars:
        raise ValueError(
            f"message refused: its {scalars} scalars do not fit the expected tensors with "
            f"{layout.scalars} scalars; do client and server build the same model?"
        )
    if len(buffer) != HEADER.size + scalars * SCALAR.itemsize:
        raise ValueError(
            f"message refused: {scalars} scalars and the header need "
            f"{HEADER.size + scalars * SCALAR.itemsize} bytes, got {len(buffer)} bytes"
        )
    return layout.shaped(np.frombuffer(buffer, SCALAR, offset=HEADER.size))
