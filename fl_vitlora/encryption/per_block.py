"""What steps with a key of its own for every block have in common.

B images, N blocks, D entries a block.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fl_vitlora.encryption.reader import Reader
from fl_vitlora.errors import UserError


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Permutes the entries of (B, N, D), block n by key[n]; key is int64 (N, D)."""
    return x.gather(-1, key.expand(len(x), -1, -1))


def refuse_adaptation(step: str) -> Callable[[Reader, Tensor], Reader]:
    """Makes the adaptation of a step that has none for a convolution."""

    def adapt(reader: Reader, key: Tensor) -> Reader:
        del reader, key
        raise UserError(
            f"{step} has no key adaptation: its keys differ from block to block, and a patch "
            "embedding reads all blocks alike; leave the step out or set encryption.adapt=false"
        )

    return adapt
