"""Makes the attacks that a user names.

The table of this project's attacks is in the module `config.attack_names`.
"""

from __future__ import annotations

from typing import Any

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.views import ADVERSARIES
from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.config.named_code import check_whole, code_named, subclass_of
from fl_vitlora.errors import UserError


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
    kind: type[Attack[Any, Any]]
    kind = code_named(ATTACKS.get(name, name), "attack", subclass_of(Attack))
    check_whole(kind, f"attack {name}")
    _check_adversaries(kind, name)
    return kind(images=images)


def _check_adversaries(kind: type[Attack[Any, Any]], name: str) -> None:
    """Raises an error if a class does not say which adversaries can carry out its attack."""
    adversaries = getattr(kind, "adversaries", ())
    if not adversaries or not set(adversaries) <= set(ADVERSARIES):
        known = ", ".join(view.__name__ for view in ADVERSARIES)
        raise UserError(
            f"attack {name}: class {kind.__name__} must name its adversaries; give `adversaries` a "
            f"tuple of some of {known}"
        )
