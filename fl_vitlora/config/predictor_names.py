"""The names of predictors, which use a model to compute the logits of test images.

This module has only the names of the predictors, so that a configuration can be read without
importing PyTorch. The module `fl_vitlora.training.prediction` imports their classes and explains
the rules for new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_vitlora.config.named_code import is_class
from fl_vitlora.errors import UserError, shown, unknown

# One line for each predictor of this project: its name, and the module and name of its class.
PREDICTORS: Mapping[str, str] = {
    "bein": "fl_vitlora.training.bein:BeIN",
    "bein_batch": "fl_vitlora.training.bein:BatchBeIN",
    "bein_closed_form": "fl_vitlora.training.bein:ClosedFormBeIN",
    "plain": "fl_vitlora.training.prediction:Plain",
}


def is_foreign(name: str) -> bool:
    """Returns True if the code of a predictor does not belong to this project.

    Example:
        >>> is_foreign("plain"), is_foreign("mine:Mine")
        (False, True)
    """
    package = name.replace(":", ".").partition(".")[0]
    return name not in PREDICTORS and package != "fl_vitlora"


def read_predictor(value: Any, path: str) -> str:
    """Reads the name of a predictor.

    Args:
        value: The name of the predictor as the user wrote it.
        path: The dotted path of the setting, for error messages.

    Raises:
        UserError: When the name is not in the table and does not have the form
            ``package.module:Class``.

    Example:
        >>> read_predictor("plain", "evaluation.predictor")
        'plain'
    """
    if not isinstance(value, str):
        raise UserError(f"{path}: expected plain or package.module:Class, got {shown(value)}")
    if value not in PREDICTORS and not is_class(value):
        raise unknown(path, value, PREDICTORS)
    return value
