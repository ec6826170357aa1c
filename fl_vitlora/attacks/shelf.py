"""Makes the attacks that a user names.

The table of this project's attacks is in the module `config.attack_names`.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.views import ADVERSARIES
from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.errors import UserError, unknown


def attack_of(name: str, images: int) -> Attack[Any, Any]:
    """Imports an attack and makes an instance of its class.

    Args:
        name: A name in the table `ATTACKS`, or ``package.module:Class``.
        images: The number of encrypted images that the attack may use.

    Raises:
        UserError: If the attack cannot be imported, or breaks the contract.

    Example:
        >>> attack_of("label_counts", images=8)
        LabelCounts(images=8)
    """
    module_name, _, class_name = ATTACKS.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"attack {name} cannot be imported: {cause}") from error
    kinds = {n: k for n, k in vars(module).items() if inspect.isclass(k) and issubclass(k, Attack)}
    kinds.pop(Attack.__name__, None)
    if class_name not in kinds:
        raise unknown(f"attack in {module_name}", class_name, kinds)
    kind = kinds[class_name]
    _check(kind, name)
    return kind(images=images)


def _check(kind: type[Attack[Any, Any]], name: str) -> None:
    """Raises an error if a class breaks the contract of an attack."""
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"attack {name}: class {kind.__name__} lacks {', '.join(lacking)}")
    adversaries = getattr(kind, "adversaries", ())
    if not adversaries or not set(adversaries) <= set(ADVERSARIES):
        known = ", ".join(view.__name__ for view in ADVERSARIES)
        raise UserError(
            f"attack {name}: class {kind.__name__} must name its adversaries, as a tuple of some "
            f"of {known}"
        )
