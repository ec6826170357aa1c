"""The contract of transforms: codecs that shorten a vector and pass the rest to another codec."""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.communication.codecs.codec import Codec
from fl_vitlora.communication.codecs.floats import Float32

WHOLE = Float32()


@dataclass(frozen=True, kw_only=True)
class Transform(Codec):
    """A codec that shortens a vector before another codec writes it.

    Attributes:
        inner: The codec that writes the remaining scalars.
    """

    inner: Codec = WHOLE

    @property
    def contracts(self) -> bool:
        """Returns True if the inner codec's error is always smaller than the vector that it writes.

        Dropping scalars alone never gives an error larger than the vector, so the inner codec
        decides.
        """
        return self.inner.contracts

    def __str__(self) -> str:
        own = super().__str__()
        return own if self.inner == WHOLE else f"{own}+{self.inner}"
