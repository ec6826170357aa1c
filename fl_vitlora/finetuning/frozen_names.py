"""The names of tensors that the server has frozen, as the memory of a part holds them.

A part that freezes tensors in `decide` must remember the names of these tensors, so that `rests`
can return them in the next round. The memory holds only tensors, so each name becomes the key of a
tensor of one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fl_vitlora.state import State

FROZEN = "frozen "  # stands before the names of frozen tensors


def frozen(names: Iterable[str]) -> State:
    """Returns the memory of a part, in which the given names are noted as frozen.

    Example:
        >>> names_of(frozen(["a", "b"]) | {"mean of c": torch.ones(2)})
        ('a', 'b')
    """
    return {FROZEN + name: torch.ones(()) for name in names}


def names_of(memory: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the names of the frozen tensors in a memory, in the order of the memory."""
    return tuple(key.removeprefix(FROZEN) for key in memory if key.startswith(FROZEN))
