"""The common base of block-wise quantisers: a scale for each block and a symbol for each scalar.

    encode:  quantise, then write            decode:  read, then restore

Sender and receiver restore the vector in the same way, so the sender knows the decoded vector
without reading the bytes again. The bytes are the scales, further bytes with parameters of the
levels, and the symbols, which are entropy-coded.

n is the number of scalars of a vector, and m is the number of its blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs.bfloat16 import Halves
from fl_vitlora.communication.codecs.bits import Symbols
from fl_vitlora.communication.codecs.blocks import blocks_of, read_scales, write_scales
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.codec import Codec, Floats, Shapes, scalars
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A quantised vector.

    Attributes:
        scales: The scales (m,) as bfloat16, finite and not negative.
        symbols: The symbols (n,).
        more: Further bytes with parameters of the levels, of a fixed length.
    """

    scales: Halves
    symbols: Symbols
    more: bytes = b""


class Quantiser(Codec):
    """A codec that writes one scale for each block and one symbol for each scalar.

    Attributes:
        block: The number of scalars that share a scale. Each codec declares the field `block`
            again, because the order of the fields is the order of the codec's arguments.
        more_bytes: The length of `Quantised.more` in bytes.
    """

    block: int
    more_bytes: ClassVar[int] = 0

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Returns the number of different symbols."""

    @abstractmethod
    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Returns the scales and symbols of a vector that was checked and is not empty."""

    @abstractmethod
    def restore(self, quantised: Quantised) -> Floats:
        """Returns the vector (n,) that scales and symbols represent."""

    def send(
        self, values: Floats, shapes: Shapes, draw: np.random.Generator
    ) -> tuple[bytes, Floats]:
        """Writes a vector, and returns the bytes with the vector that `decode` will return."""
        self.check(values, shapes)
        if not len(values):
            return b"", values
        quantised = self.quantise(values, draw)
        return self._written(quantised), self.restore(quantised)

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Quantises a vector and writes it."""
        return self._written(self.quantise(values, draw))

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads a quantised vector and restores it."""
        n = scalars(shapes)
        scales = read_scales(reader, blocks_of(n, self.block))
        more = reader.take(self.more_bytes)
        symbols = read_symbols(reader, n, self.symbols)
        return self.restore(Quantised(scales=scales, symbols=symbols, more=more))

    def _written(self, quantised: Quantised) -> bytes:
        symbols = write_symbols(quantised.symbols, self.symbols)
        return write_scales(quantised.scales) + quantised.more + symbols
