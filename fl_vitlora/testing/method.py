"""The rules that every fine-tuning method must obey, checked on a small real ViT.

    from fl_vitlora.testing.method import check_method

    def test_my_method():
        check_method(MyPart(gain=2.0))

The command line runs the same check: ``python simulate.py --check-method my_package.mine:MyPart``.
The model is the bundled architecture with random weights, so nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.testing import Finding, method_clients, method_model, method_server, method_watch
from fl_vitlora.testing.method_subject import MethodError, Subject
from fl_vitlora.testing.returned import ContractError

__all__ = ["RULES", "MethodError", "Rule", "Subject", "check_method", "findings"]


class Rule(NamedTuple):
    """A rule that a fine-tuning method must obey.

    Attributes:
        told: The rule in words, as the end of a sentence that begins with "The method".
        check: A function that raises an error if the rule is broken.
    """

    told: str
    check: Callable[[Subject], None]


RULES = (
    Rule(
        "finds all tensors that it trains in a ViT, and the model uses them", method_model.attaches
    ),
    Rule("starts with the same tensors whenever the seed is the same", method_model.draws_the_same),
    Rule(
        "changes no pre-trained tensor when it is attached to a model",
        method_model.leaves_the_reference,
    ),
    Rule(
        "does not change the model's outputs before it is trained, or says why",
        method_model.starts_at_identity,
    ),
    Rule("gives every trained tensor a gradient", method_model.reaches_all),
    Rule("changes no bit of a frozen tensor in training", method_model.keeps_the_rest),
    Rule("loads its exported tensors into a second model with equal outputs", method_model.reloads),
    Rule("merges into a plain model with equal outputs, or refuses to merge", method_model.merges),
    Rule("sends the tensors that it names, with four bytes per number", method_clients.travels),
    Rule(
        "computes the same for clients in one batch as for each client alone (if stackable)",
        method_clients.stacks,
    ),
    Rule("has an exact average (if it declares averages_exactly)", method_clients.averages),
    Rule(
        "has no penalty, or a penalty that is a sum over the entries of tensors",
        method_model.penalises,
    ),
    Rule(
        "freezes (`rests`) and changes (`decide`) only tensors that exist, the same in every call",
        method_server.rests,
    ),
    Rule(
        "corrects averaged tensors (`retract`) so that a second call changes nothing",
        method_server.retracts,
    ),
    Rule(
        "measures the tensors that it names and leaves no hook (if it watches batches)",
        method_watch.watches,
    ),
    Rule(
        "computes the same from kept features (if it declares frozen_backbone)",
        method_model.has_features,
    ),
    Rule(
        "can be attached to a model without numbers, or declares that it needs them "
        "(`reads_weights`)",
        method_model.drafts,
    ),
)


def check_method(method: Part | Method | str) -> None:
    """Checks a fine-tuning method against all rules.

    A method is a sum of parts. Each part trains some tensors of the model.

    Args:
        method: A part, a whole method, or the name of a method, such as ``bias+norm``.

    Raises:
        MethodError: If a rule is broken; the message names the first broken rule.

    Example:
        >>> check_method("bias+norm")
    """
    for finding in findings(method):
        if finding.problem is not None:
            raise MethodError(f"{finding.rule}: {finding.problem}")


def findings(method: Part | Method | str) -> list[Finding]:
    """Checks a fine-tuning method by one rule after the other; returns a finding for each rule.

    If the first rule is broken, the other rules are not tested, because they would fail too.

    Args:
        method: A part, a whole method, or the name of a method, such as ``bias+norm``.
    """
    subject, found = Subject(method=_whole(method)), list[Finding]()
    for rule in RULES:
        problem = None
        try:
            rule.check(copy.deepcopy(subject))
        except (MethodError, ContractError, UserError) as error:
            problem = str(error)
        except Exception as error:  # raised by the method's own code
            problem = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(rule.told, problem))
        if problem is not None and rule is RULES[0]:
            break
    return found


def _whole(method: Part | Method | str) -> Method:
    if isinstance(method, str):
        return shelf.method_of(FineTuningConfig(method=method))
    if isinstance(method, Part):
        return Method(name=type(method).__name__, parts=((type(method).__name__, method),))
    return method
