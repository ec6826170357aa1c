"""Prints the outcomes of attacks on a finished run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.reporting.table_layout import print_named, print_table, screen

TITLES = {"recovered": "recovered", "partly": "partly recovered", "not": "not recovered"}
HEAD = ["", "found", "by chance", "at best"]


def print_attacks(outcomes: Sequence[Outcome], folder: str, console: Console | None = None) -> None:
    """Prints a table of figures, and the reasons for attacks that were not carried out.

    Args:
        outcomes: The outcomes of all attacks.
        folder: The path of the run folder.
        console: The console that prints; None for the screen.
    """
    console = console or screen()
    tried = [outcome for outcome in outcomes if not outcome.reason]
    if tried:
        print_table(console, [HEAD, *(row for o in tried for row in _rows(o))], texts=1)
        console.print()
    for title in ("not applicable", "out of time"):
        reasons = {f"{_named(o)}  ": Text(o.reason) for o in outcomes if o.verdict == title}
        if reasons:
            console.print(title, style="bold")
            print_named(console, reasons)
            console.print()
    print_named(console, {"attacks": Text(f"{folder}/attacks.json, with the rule of the verdicts")})


def _named(outcome: Outcome) -> str:
    return f"{outcome.attack}, {outcome.adversary}"


def _rows(outcome: Outcome) -> list[list[str]]:
    """Returns a row with the verdict, and a row for each figure."""
    of = f" (mean of {outcome.victims})" if outcome.victims > 1 else ""
    title = f"{_named(outcome)}{of}: {TITLES[outcome.verdict]}"
    return [[title, "", "", ""], *(_row(figure) for figure in outcome.figures)]


def _row(figure: Figure) -> list[str]:
    numbers = (figure.value, figure.floor, figure.ceiling)
    return [f"  {figure.name}", *map(figure.shown, numbers)]
