"""Encodes and decodes made-up tensors as a run without compression does, and counts the bytes."""

from __future__ import annotations

import numpy as np

from fl_vitlora.communication.compression import code, decode
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.communication.packing import Layout
from fl_vitlora.state import State


def sent_and_received(state: State) -> tuple[State, int]:
    """Encodes and decodes tensors, without compression.

    Args:
        state: The tensors to send, float32.

    Returns:
        A pair: the decoded tensors, and the number of bytes of their encoded values.

    Example:
        >>> import torch
        >>> sent_and_received({"head.bias": torch.ones(3)})
        ({'head.bias': tensor([1., 1., 1.])}, 12)
    """
    layout = Layout.of(state)
    part = code(state, layout, EXACT, np.random.default_rng(0))
    return decode(part, layout), sum(len(section.body) for section in part.sections)
