"""The contract of codecs: vectors of float32 to bytes and back, usually with a loss.

A codec is a value: its class says how, its fields say how finely. `encode` and `decode` are pure;
what a codec may draw comes from the generator that it is given, so the same draw gives the same
bytes. What it lost is the business of the caller (error feedback keeps it for the next round).

n scalars, of all tensors of a group one after the other in the order of their shapes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.communication.codecs.arguments import Argument
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.errors import UserError

Floats = NDArray[np.float32]
Shapes = tuple[tuple[int, ...], ...]


def scalars(shapes: Shapes) -> int:
    """Counts the scalars n of all tensors.

    Example:
        >>> scalars(((2, 3), (4,)))
        10
    """
    return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """How a vector is written; as text it is a specification that `codecs.parse` reads.

    Attributes:
        name: The name of the codec in specifications.
        example: A specification, shown beside mistakes.
        lossless: True if decoding gives back every bit.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    lossless: ClassVar[bool] = False

    @property
    def contracts(self) -> bool:
        """Tells whether errors that are fed back stay bounded: E‖x - Q(x)‖² < ‖x‖² for every x.

        Where that fails, what is withheld may grow from round to round without end.
        """
        return True

    def __post_init__(self) -> None:
        for key, argument in self.arguments().items():
            if not argument.allows(value := getattr(self, key)):
                raise self.mistake(f"{key} must be {argument}, got {value!r}")

    def encode(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes a vector.

        Args:
            values: (n,), finite.
            shapes: The shapes of the tensors that the vector lists.
            draw: The source of random numbers.

        Returns:
            The bytes; none for an empty vector.

        Raises:
            ValueError: When a value is not finite, or the shapes are of another vector.
        """
        self.check(values, shapes)
        return self.write(values, shapes, draw) if len(values) else b""

    def send(
        self, values: Floats, shapes: Shapes, draw: np.random.Generator
    ) -> tuple[bytes, Floats]:
        """Writes a vector, and tells what `decode` will make of it.

        Args:
            values: The vector that is to be encoded.
            shapes: The shapes of the tensors that the vector lists.
            draw: The source of random numbers.

        Returns:
            The bytes, and (n,).

        Raises:
            ValueError: As `encode` does.
        """
        data = self.encode(values, shapes, draw)
        return data, self.decode(data, shapes)

    @staticmethod
    def check(values: Floats, shapes: Shapes) -> None:
        """Sees to it that a vector can be written.

        Raises:
            ValueError: When a value is not finite, or the shapes are of another vector.
        """
        if values.shape != (scalars(shapes),):
            raise ValueError(f"{scalars(shapes)} scalars expected, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("its update holds NaN or infinity; a smaller learning rate may help")

    def decode(self, data: bytes, shapes: Shapes) -> Floats:
        """Reads a vector.

        Args:
            data: The bytes that `encode` wrote for these shapes.
            shapes: The shapes of the tensors that are expected.

        Returns:
            (n,), finite.

        Raises:
            ValueError: When the bytes are foreign, cut off, too many, or of other tensors.
        """
        reader = ByteReader(data)
        n = scalars(shapes)
        try:
            values = self.read(reader, shapes) if n else np.empty(0, np.float32)
            reader.end()
        except ValueError as error:
            raise ValueError(f"refused {n} scalars in {self}: {error}") from None
        if not np.isfinite(values).all():
            raise ValueError(f"refused {n} scalars in {self}: not all of them are finite")
        return values

    @abstractmethod
    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Encodes a vector that is checked and not empty."""

    @abstractmethod
    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Decodes a vector that is not empty, or raises `ValueError`."""

    @classmethod
    def arguments(cls) -> dict[str, Argument]:
        """Lists what the codec may be told, in the order of a specification."""
        return {
            field.name: cast("Argument", field.metadata["argument"])
            for field in fields(cls)
            if "argument" in field.metadata
        }

    @classmethod
    def required(cls) -> list[str]:
        """Lists which of its arguments have no default."""
        defaults = {field.name: field.default for field in fields(cls)}
        return [key for key in cls.arguments() if defaults[key] is MISSING]

    @classmethod
    def mistake(cls, what: str) -> UserError:
        """Says what is wrong with a specification of this codec."""
        return UserError(f"codec {cls.name}: {what}; for example {cls.example}")

    def __str__(self) -> str:
        defaults = {field.name: field.default for field in fields(self)}
        told = [
            f"{key}={value}" if place else f"{value}"
            for place, key in enumerate(self.arguments())
            if (value := getattr(self, key)) != defaults[key]
        ]
        return f"{self.name}({','.join(told)})" if told else self.name
