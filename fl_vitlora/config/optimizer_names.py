"""The table of optimisers with which a client can train.

This module has only the names of the optimisers, so that a configuration can be read without
importing PyTorch. The module `fl_vitlora.training.optimizers` imports the optimisers and explains
the rules for new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_vitlora.errors import UserError, shown, unknown

# One line for each optimiser: its name, and the module and name of the object that makes it.
OPTIMIZERS: Mapping[str, str] = {
    "adagrad": "fl_vitlora.training.optimizers:ADAGRAD",
    "adam": "fl_vitlora.training.optimizers:ADAM",
    "adamw": "fl_vitlora.training.optimizers:ADAMW",
    "nadam": "fl_vitlora.training.optimizers:NADAM",
    "sgd": "fl_vitlora.training.optimizers:SGD",
}


def read_optimizer(value: Any, path: str) -> str:
    """Reads the name of an optimiser.

    Args:
        value: The name of the optimiser as the user wrote it.
        path: The dotted path of the setting, for error messages.

    Raises:
        UserError: When the table has no optimiser of this name.

    Example:
        >>> read_optimizer("sgd", "training.optimizer")
        'sgd'
    """
    if not isinstance(value, str):
        raise UserError(f"{path}: expected a name such as adamw, got {shown(value)}")
    if value not in OPTIMIZERS:
        raise unknown(path, value, OPTIMIZERS)
    return value
