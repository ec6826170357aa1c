"""The result of checking a file against the rules of its contract, on the screen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console

# The same finding can occur under several circumstances; only this part of its text then differs.
CIRCUMSTANCES = re.compile(
    r"round \d+: | with \d of \d clients| \((all in|clients of ranks) [^)]*\)"
)


def print_findings(
    strategy: Sequence[str],
    findings: Sequence[tuple[str, str | None]],
    untried: int = 0,
    console: Console | None = None,
) -> None:
    """Prints for every rule whether a strategy passed or failed it.

    Args:
        strategy: Lines about the strategy, printed first.
        findings: For each rule, its text and the problem; the problem is None if the rule is kept.
        untried: Number of rules that were not tried.
        console: Console to print to; None for the screen.
    """
    screen = console or Console(highlight=False, soft_wrap=True)
    for line in strategy:
        screen.print(line, markup=False)
    printed: set[str] = set()  # problems that are on the screen already
    for rule, problem in findings:
        cause = CIRCUMSTANCES.sub("", problem or "")
        again = " (as above)" if cause in printed else ""
        screen.print(
            f"{'[red]failed[/red]' if problem else '[green]passed[/green]'}  {rule}{again}"
        )
        if problem and not again:
            screen.print(f"        {problem}", markup=False)
            printed.add(cause)
    failed = sum(problem is not None for _, problem in findings)
    left = f"; the other {untried} rules were not tried" if untried else ""
    screen.print(f"{len(findings)} rules, {failed} failed{left}")
