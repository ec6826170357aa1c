"""The contract of transforms: codecs that shorten a vector and leave its scalars to another."""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.communication.codecs.codec import Codec
from fl_vitlora.communication.codecs.floats import Float32

WHOLE = Float32()


@dataclass(frozen=True, kw_only=True)
class Transform(Codec):
    """A codec in front of another.

    Attributes:
        inner: Writes what is left.
    """

    inner: Codec = WHOLE

    @property
    def contracts(self) -> bool:
        """Tells what the inner codec tells: what is left out is withheld once."""
        return self.inner.contracts

    def __str__(self) -> str:
        own = super().__str__()
        return own if self.inner == WHOLE else f"{own}+{self.inner}"
