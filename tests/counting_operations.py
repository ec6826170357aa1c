"""Counts the operations on tensors that some code takes, which is the same on every machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch inside a `with` block, by name, such as "aten::equal"."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.counted[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))
