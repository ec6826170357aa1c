"""Packing: all tensors of a record in one flat float32 buffer behind a 20-byte header.

So they are handed from room to room, and so a client remembers them; how they travel is another
matter (`compression`, `parcel`).

Client and server build the same model, so names and shapes need not travel: the header carries a
digest of them instead, and a buffer that was made for another model is refused.

Header: magic "FVL1" (4 bytes), digest of the layout (8 bytes), number of scalars (8 bytes, little
endian). Body: the scalars of all tensors in the layout's order, little endian.
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
    """Names and shapes of the tensors that are exchanged, in their order.

    Attributes:
        shapes: Pairs of name and shape.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Layout:
        """Reads the layout off a state."""
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in state.items()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Lists the names in their order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def digest(self) -> bytes:
        """Names the layout in 8 bytes."""
        return _digest(self.shapes)

    @cached_property
    def scalars(self) -> int:
        """Counts the scalars of all tensors."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def ending_with(self, endings: tuple[str, ...]) -> frozenset[str]:
        """Finds the names with one of these endings."""
        return frozenset(name for name, _ in self.shapes if name.endswith(endings))

    def empty(self) -> State:
        """Returns tensors of these names and shapes that hold no memory."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes}

    def mark(self, names: frozenset[str]) -> bytes:
        """Writes down which of the names are meant, a bit for each in their order.

        Example:
            >>> layout = Layout((("a", ()), ("b", ()), ("c", ())))
            >>> sorted(layout.marked(layout.mark(frozenset({"a", "c"}))))
            ['a', 'c']
        """
        bits = np.array([name in names for name, _ in self.shapes], dtype=np.uint8)
        return np.packbits(bits).tobytes()

    def marked(self, bits: bytes) -> frozenset[str]:
        """Reads what `mark` wrote.

        Raises:
            ValueError: When that is not what `mark` writes.
        """
        if len(bits) != -(-len(self.shapes) // 8):
            raise ValueError(f"message refused: {len(bits)} bytes mark {len(self.shapes)} tensors")
        marks = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(self.shapes))
        return frozenset(n for (n, _), one in zip(self.shapes, marks, strict=True) if one)

    def only(self, names: frozenset[str]) -> Layout:
        """Leaves out all others."""
        return Layout(tuple(pair for pair in self.shapes if pair[0] in names))

    def without(self, names: frozenset[str]) -> Layout:
        """Leaves out some tensors."""
        return Layout(tuple(pair for pair in self.shapes if pair[0] not in names))

    def shaped(self, scalars: NDArray[np.floating[Any]]) -> State:
        """Gives a list of scalars the names and shapes of the tensors, float32."""
        found, begin = {}, 0
        for name, shape in self.shapes:
            end = begin + math.prod(shape)
            part = np.array(scalars[begin:end], np.float32)  # memory of its own
            found[name] = torch.from_numpy(part.reshape(shape))
            begin = end
        return found


@functools.lru_cache(maxsize=64)
def _digest(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> bytes:
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).digest()


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Writes a state into one buffer.

    Args:
        state: Tensors of any floating type, on the CPU.

    Returns:
        Header and float32 scalars.

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
        buffer: Header and scalars.
        layout: What is expected.

    Returns:
        The state, float32.

    Raises:
        ValueError: When the buffer is foreign, cut off, or made for other tensors.
    """
    if len(buffer) < HEADER.size or not buffer.startswith(MAGIC):
        raise ValueError("message refused: it does not begin as a packed state does")
    _, digest, scalars = HEADER.unpack_from(buffer)
    if digest != layout.digest or scalars != layout.scalars:
        raise ValueError(
            f"message refused: it holds {scalars} scalars of other tensors than the "
            f"{layout.scalars} expected; do client and server build the same model?"
        )
    if len(buffer) != HEADER.size + scalars * SCALAR.itemsize:
        raise ValueError(
            f"message refused: {scalars} scalars need {HEADER.size + scalars * SCALAR.itemsize} "
            f"bytes, got {len(buffer)}"
        )
    return layout.shaped(np.frombuffer(buffer, SCALAR, offset=HEADER.size))
