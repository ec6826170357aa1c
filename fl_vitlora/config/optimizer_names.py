"""The names of the optimisers that a client can train with.

These names are all that the settings know of the optimisers, so that reading a configuration
imports no PyTorch. `fl_vitlora.training.optimizers` has the table of what they stand for.
"""

from __future__ import annotations

from typing import Any

from fl_vitlora.errors import UserError, shown, unknown

OPTIMIZERS: tuple[str, ...] = ("adagrad", "adam", "adamw", "nadam", "sgd")


def read_optimizer(value: Any, path: str) -> str:
    """Reads the name of an optimiser.

    Args:
        value: The name as it was written.
        path: The setting, for messages.

    Raises:
        UserError: When there is no such optimiser.

    Example:
        >>> read_optimizer("sgd", "training.optimizer")
        'sgd'
    """
    if not isinstance(value, str):
        raise UserError(f"{path}: expected a name such as adamw, got {shown(value)}")
    if value not in OPTIMIZERS:
        raise unknown(path, value, OPTIMIZERS)
    return value
