"""Functions that store the names of frozen tensors in the memory of a part, and read them again.

A part that freezes tensors in `decide` must remember the names of these tensors, so that `rests`
can return the names in the next round. The memory holds only tensors. Therefore each name becomes
a key of the memory, and the value is a tensor of one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fl_vitlora.state import State

FROZEN = "frozen "  # the prefix of the names of frozen tensors in the memory


def frozen(names: Iterable[str]) -> State:
    """Returns entries for the memory of a part, which say that the given names are frozen.

    Example:
        >>> names_of(frozen(["a", "b"]) | {"mean of c": torch.ones(2)})
        ('a', 'b')
    """
    return {FROZEN + name: torch.ones(()) for name in names}


def names_of(memory: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the names of frozen tensors that a memory holds, in the order of the memory."""
    return tuple(key.removeprefix(FROZEN) for key in memory if key.startswith(FROZEN))
