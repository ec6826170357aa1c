"""Prints the result of testing a user's own code, for example a strategy, against its rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console

# The same problem can occur in several rounds or with other clients. This pattern matches the part
# of the text that names the round or clients. Of texts that differ only in this part, only the
# first text is printed.
CIRCUMSTANCES = re.compile(
    r"round \d+: | with \d of \d clients| \((all in|clients of ranks) [^)]*\)"
)


def print_findings(
    strategy: Sequence[str],
    findings: Sequence[tuple[str, str | None]],
    untried: int = 0,
    console: Console | None = None,
) -> None:
    """Prints for every rule whether the tested code obeys the rule.

    Args:
        strategy: Lines that describe the tested code, which are printed first.
        findings: For each rule, a pair: the text of the rule, and the problem that was found. The
            problem is None if the code obeys the rule.
        untried: The number of rules that were not tested.
        console: The console that prints; None for the screen.
    """
    screen = console or Console(highlight=False, soft_wrap=True)
    for line in strategy:
        screen.print(line, markup=False)
    printed: set[str] = set()  # problems that were already printed
    for rule, problem in findings:
        cause = CIRCUMSTANCES.sub("", problem or "")
        again = " (the same problem as above)" if cause in printed else ""
        screen.print(
            f"{'[red]failed[/red]' if problem else '[green]passed[/green]'}  {rule}{again}"
        )
        if problem and not again:
            screen.print(f"        {problem}", markup=False)
            printed.add(cause)
    failed = sum(problem is not None for _, problem in findings)
    left = f"; the other {untried} rules were not tested" if untried else ""
    screen.print(f"{len(findings)} rules, {failed} failed{left}")
