"""The contract of codecs, which convert vectors of float32 to bytes and back, often with errors.

Each way of coding is a Python class, and the fields of an instance set how fine the coding is.
`encode` and `decode` are pure functions. All random numbers come from the given generator, so the
same state of the generator gives the same bytes. The codec does not correct its errors: with error
feedback, the caller adds the error of one round to the vector of the next round.

A vector holds the tensors of one group (tensors that share a codec), one after the other, in the
order of `shapes`. n is the number of scalars of all these tensors.
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
    """Returns the number n of scalars of all tensors.

    Example:
        >>> scalars(((2, 3), (4,)))
        10
    """
    return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """A way to write a vector as bytes. `str(codec)` is its specification, see `codecs.parse`.

    Attributes:
        name: The name of the codec in specifications.
        example: An example of a specification, shown in error messages.
        lossless: True if decoding restores every bit.
        fine: True if the errors are so small that the codec may write the two factors of a matrix
            (`lowrank`) with error feedback. The errors of both factors multiply.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    lossless: ClassVar[bool] = False
    fine: ClassVar[bool] = False

    @property
    def contracts(self) -> bool:
        """Returns True if the error is smaller than the vector x: E‖x - Q(x)‖² < ‖x‖² for every x.

        Q(x) is the decoded vector, and E the mean over random rounding. If the value is False and
        error feedback is used, the error may grow from round to round.
        """
        return True

    def __post_init__(self) -> None:
        for key, argument in self.arguments().items():
            if not argument.allows(value := getattr(self, key)):
                raise self.mistake(f"{key} must be {argument}, got {value!r}")

    def encode(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes a vector as bytes.

        Args:
            values: The vector (n,) of finite scalars.
            shapes: The shapes of the tensors in the vector.
            draw: The generator of random numbers, for codecs with random rounding.

        Returns:
            The bytes; an empty vector gives no bytes.

        Raises:
            ValueError: If a scalar is not finite, or the shapes do not fit the vector.
        """
        self.check(values, shapes)
        return self.write(values, shapes, draw) if len(values) else b""

    def send(
        self, values: Floats, shapes: Shapes, draw: np.random.Generator
    ) -> tuple[bytes, Floats]:
        """Writes a vector, and returns the bytes with the vector that `decode` will return.

        Args:
            values: The vector (n,) of finite scalars.
            shapes: The shapes of the tensors in the vector.
            draw: The generator of random numbers, for codecs with random rounding.

        Returns:
            The bytes, and the decoded vector (n,).

        Raises:
            ValueError: If a scalar is not finite, or the shapes do not fit the vector.
        """
        data = self.encode(values, shapes, draw)
        return data, self.decode(data, shapes)

    @staticmethod
    def check(values: Floats, shapes: Shapes) -> None:
        """Checks that a vector has the length that the shapes need, and only finite scalars.

        Raises:
            ValueError: If a scalar is not finite, or the shapes do not fit the vector.
        """
        if values.shape != (scalars(shapes),):
            raise ValueError(
                f"expected a vector of {scalars(shapes)} scalars, got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError("its update holds NaN or infinity; a smaller learning rate may help")

    def decode(self, data: bytes, shapes: Shapes) -> Floats:
        """Reads a vector from bytes.

        Args:
            data: The bytes that `encode` wrote for these shapes.
            shapes: The shapes of the expected tensors.

        Returns:
            The vector (n,) of finite scalars.

        Raises:
            ValueError: If the bytes do not have the format of this codec, are too few or too many,
                or belong to other tensors.
        """
        reader = ByteReader(data)
        n = scalars(shapes)
        try:
            values = self.read(reader, shapes) if n else np.empty(0, np.float32)
            reader.end()
        except ValueError as error:
            raise ValueError(f"{n} scalars coded with {self} are refused: {error}") from None
        if not np.isfinite(values).all():
            raise ValueError(
                f"{n} scalars coded with {self} are refused: not all of them are finite"
            )
        return values

    @abstractmethod
    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Encodes a vector that was checked and is not empty."""

    @abstractmethod
    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Decodes a vector that is not empty; raises `ValueError` if the bytes are invalid."""

    @classmethod
    def arguments(cls) -> dict[str, Argument]:
        """Returns the arguments of the codec by name, in the order of a specification."""
        return {
            field.name: cast("Argument", field.metadata["argument"])
            for field in fields(cls)
            if "argument" in field.metadata
        }

    @classmethod
    def required(cls) -> list[str]:
        """Returns the names of the arguments that have no default."""
        defaults = {field.name: field.default for field in fields(cls)}
        return [key for key in cls.arguments() if defaults[key] is MISSING]

    @classmethod
    def mistake(cls, what: str) -> UserError:
        """Returns an error about a specification of this codec, with a correct example."""
        return UserError(f"codec {cls.name}: {what}; for example {cls.example}")

    def __str__(self) -> str:
        defaults = {field.name: field.default for field in fields(self)}
        told = [
            f"{key}={value}" if place else f"{value}"
            for place, key in enumerate(self.arguments())
            if (value := getattr(self, key)) != defaults[key]
        ]
        return f"{self.name}({','.join(told)})" if told else self.name
