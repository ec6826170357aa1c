"""The report that `--check-method` prints about a fine-tuning method."""

from __future__ import annotations

from pathlib import Path

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import read_method
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.testing import Finding
from fl_vitlora.testing.method import RULES, findings
from fl_vitlora.testing.own_file import class_in_file


def named(name: str) -> str:
    """Returns the name of the method that is checked, in the form of ``finetuning.method``.

    Args:
        name: The name of a method, such as ``bias+norm``, or the path of a Python file. A file is
            imported, and must define one class that derives from `Part`.

    Raises:
        UserError: If the file cannot be imported, or if it does not define exactly one class that
            derives from `Part`.
    """
    if Path(name).suffix != ".py":
        return read_method(name, "--check-method")
    kind = class_in_file(
        name, "--check-method", lambda kind: issubclass(kind, Part), "class derived from Part"
    )
    return f"{kind.__module__}:{kind.__name__}"


def report(config: FineTuningConfig) -> tuple[list[str], list[Finding], int]:
    """Checks the fine-tuning method of a configuration.

    Args:
        config: The name of the method and its hyper-parameters.

    Returns:
        A triple: the lines of a description of the method, a finding for each rule that was tested,
        and the number of rules that were not tested.
    """
    method = shelf.method_of(config)
    found = findings(method)
    return described(method), found, len(RULES) - len(found)


def described(method: Method) -> list[str]:
    """Returns the lines of a description of a method: its parts, and what it can do.

    Example:
        >>> described(shelf.method_of(FineTuningConfig(method="bias+norm")))[-1]
        'low-rank pairs: no, clients can share a batch: no, tensors that clients keep: none'
    """
    kept = ", ".join(method.personal) or "none"
    answers = [
        f"low-rank pairs: {'yes' if method.low_rank else 'no'}",
        f"clients can share a batch: {'yes' if method.stackable else 'no'}",
        f"tensors that clients keep: {kept}",
    ]
    reasons = [f"{n} cannot merge: {p.cannot_merge}" for n, p in method.parts if p.cannot_merge]
    reasons += [
        f"{n} changes the outputs at the start: {p.changes_start}"
        for n, p in method.parts
        if p.changes_start
    ]
    return [*(f"{name}: {part!r}" for name, part in method.parts), *reasons, ", ".join(answers)]
