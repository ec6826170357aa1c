"""The names of the attacks with which a finished run can be audited.

This module has only the names of the attacks, so that the command line can be read without
importing PyTorch. The module `fl_vitlora.attacks.contract` explains the rules for new attacks.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_vitlora.config.named_code import is_class
from fl_vitlora.errors import UserError, unknown

# One line for each attack of this project: its name, and the module and name of its class.
ATTACKS: Mapping[str, str] = {
    "label_counts": "fl_vitlora.attacks.label_counts:LabelCounts",
    "key_columns": "fl_vitlora.attacks.key_columns:KeyColumns",
    "key_correlations": "fl_vitlora.attacks.key_correlations:KeyCorrelations",
    "second_order": "fl_vitlora.attacks.second_order:SecondOrder",
    "position_statistics": "fl_vitlora.attacks.position_statistics:PositionStatistics",
    "exhaustive_key": "fl_vitlora.attacks.exhaustive_key:ExhaustiveKey",
    "known_plaintext": "fl_vitlora.attacks.known_plaintext:KnownPlaintext",
    "label_reading": "fl_vitlora.attacks.label_reading:LabelReading",
    "learned_images": "fl_vitlora.attacks.learned_images:LearnedImages",
    "brightness_flip": "fl_vitlora.attacks.brightness_flip:BrightnessFlip",
    "block_jigsaw": "fl_vitlora.attacks.block_jigsaw:BlockJigsaw",
    "span": "fl_vitlora.attacks.span:PatchSpan",
    "gradient_matching": "fl_vitlora.attacks.gradient_matching:GradientMatching",
    "membership_loss": "fl_vitlora.attacks.membership_loss:MembershipLoss",
    "membership_rounds": "fl_vitlora.attacks.membership_rounds:MembershipRounds",
    "membership_sums": "fl_vitlora.attacks.membership_sums:MembershipSums",
    "class_presence": "fl_vitlora.attacks.class_presence:ClassPresence",
    "crafted_embedding": "fl_vitlora.attacks.crafted_embedding:CraftedEmbedding",
    "false_keys": "fl_vitlora.attacks.false_keys:FalseKeys",
    "false_dropout": "fl_vitlora.attacks.false_dropout:FalseDropout",
    "inconsistent_models": "fl_vitlora.attacks.inconsistent_models:InconsistentModels",
    "unequal_weights": "fl_vitlora.attacks.unequal_weights:UnequalWeights",
    "position_closed_form": "fl_vitlora.attacks.position_closed_form:PositionClosedForm",
}

# Attacks that take minutes for each client. They are carried out only if ``--only`` names them.
ON_REQUEST = ("gradient_matching", "crafted_embedding")
USUAL = tuple(name for name in ATTACKS if name not in ON_REQUEST)


def read_attacks(text: str | None) -> tuple[str, ...]:
    """Reads a list of attacks, as a user writes it after ``--only``.

    Args:
        text: Names in the table `ATTACKS`, or ``package.module:Class``, with commas between them.
            None means all attacks of this project except those in `ON_REQUEST`.

    Returns:
        The names, in the order in which they were written.

    Raises:
        UserError: If a name is unknown, is missing, or occurs twice.

    Example:
        >>> read_attacks("span, label_counts")
        ('span', 'label_counts')
        >>> read_attacks(None) == USUAL
        True
    """
    if text is None:
        return USUAL
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in ATTACKS and not is_class(name):
            raise unknown("--only", name, ATTACKS)
        if names.count(name) > 1:
            raise UserError(f"--only {text}: expected each attack once, but {name} occurs twice")
    return names
