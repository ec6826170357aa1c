"""Plain floats: every scalar takes 4 bytes (exact) or 2 bytes (rounded), little endian.

float16 has 11 significant bits and a range of ±65504; larger numbers are clipped to this range.
bfloat16 has 8 significant bits and the range of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.codec import Codec, Floats, Shapes, scalars

HALF = np.dtype("<u2")
FLOAT16 = np.dtype("<f2")
FLOAT32 = np.dtype("<f4")
MOST_FLOAT16 = np.float32(65504)


@dataclass(frozen=True, kw_only=True)
class Float32(Codec):
    """A codec that writes every scalar with all its bits.

    Example:
        >>> codec, values = Float32(), np.float32([1.5, -2.0])
        >>> codec.decode(codec.encode(values, ((2,),), np.random.default_rng(0)), ((2,),)).tolist()
        [1.5, -2.0]
    """

    name: ClassVar[str] = "float32"
    example: ClassVar[str] = "float32"
    fine: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def send(
        self, values: Floats, shapes: Shapes, draw: np.random.Generator
    ) -> tuple[bytes, Floats]:
        """Writes a vector; returns the bytes, and the same vector, because decoding is exact."""
        return self.encode(values, shapes, draw), values

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes 4 bytes for each scalar."""
        return values.astype(FLOAT32, copy=False).tobytes()

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads 4 bytes for each scalar."""
        data = reader.take(scalars(shapes) * FLOAT32.itemsize)
        return np.frombuffer(data, FLOAT32).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Float16(Codec):
    """A codec that writes the nearest float16 of each scalar, clipped to ±65504."""

    name: ClassVar[str] = "float16"
    example: ClassVar[str] = "float16"
    fine: ClassVar[bool] = True

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes 2 bytes a scalar."""
        return np.clip(values, -MOST_FLOAT16, MOST_FLOAT16).astype(FLOAT16).tobytes()

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads 2 bytes a scalar."""
        data = reader.take(scalars(shapes) * FLOAT16.itemsize)
        with np.errstate(invalid="ignore"):  # a NaN is refused by `decode`
            return np.frombuffer(data, FLOAT16).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BFloat16(Codec):
    """A codec that writes the nearest bfloat16 of each scalar."""

    name: ClassVar[str] = "bfloat16"
    example: ClassVar[str] = "bfloat16"
    fine: ClassVar[bool] = True

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes 2 bytes a scalar."""
        return bfloat16.nearest(values).astype(HALF, copy=False).tobytes()

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads 2 bytes a scalar."""
        data = reader.take(scalars(shapes) * HALF.itemsize)
        return bfloat16.widened(np.frombuffer(data, HALF).astype(np.uint16))
