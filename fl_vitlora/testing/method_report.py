"""The report of the command line on a fine-tuning method that a user checks."""

from __future__ import annotations

from pathlib import Path

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import read_method
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.method import Method, Part
from fl_vitlora.testing import Finding
from fl_vitlora.testing.method import RULES, findings
from fl_vitlora.testing.own_file import class_in_file


def named(name: str) -> str:
    """Returns the name of the method to check, given as a name or as a file with one part.

    Args:
        name: A sum of parts, or the path of a Python file, which is imported.

    Raises:
        UserError: When the file cannot be imported, or does not have exactly one part.
    """
    if Path(name).suffix != ".py":
        return read_method(name, "--check-method")
    kind = class_in_file(
        name, "--check-method", lambda kind: issubclass(kind, Part), "class derived from Part"
    )
    return f"{kind.__module__}:{kind.__name__}"


def report(config: FineTuningConfig) -> tuple[list[str], list[Finding], int]:
    """Checks the method of a configuration.

    Args:
        config: The name of the method and its hyper-parameters.

    Returns:
        The description of the method in lines, the findings, and the number of rules that were not
        tried.
    """
    method = shelf.method_of(config)
    found = findings(method)
    return described(method), found, len(RULES) - len(found)


def described(method: Method) -> list[str]:
    """Returns the description of a method, in lines.

    Example:
        >>> described(shelf.method_of(FineTuningConfig(method="bias+norm")))[-1]
        'low-rank pairs: no, clients share a batch: no, kept by clients: none'
    """
    kept = ", ".join(method.personal) or "none"
    answers = [
        f"low-rank pairs: {'yes' if method.low_rank else 'no'}",
        f"clients share a batch: {'yes' if method.stackable else 'no'}",
        f"kept by clients: {kept}",
    ]
    reasons = [f"{n} cannot merge: {p.cannot_merge}" for n, p in method.parts if p.cannot_merge]
    reasons += [
        f"{n} changes the outputs at the start: {p.changes_start}"
        for n, p in method.parts
        if p.changes_start
    ]
    return [*(f"{name}: {part!r}" for name, part in method.parts), *reasons, ", ".join(answers)]
