"""Shows on a terminal which attack of an audit is being carried out, and for how long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fl_vitlora.reporting.shown_bar import ShownBar


class AttackProgress(ShownBar):
    """A progress line that is visible inside a `with` block, if there is a terminal.

    Args:
        attacks: The number of attacks.
        console: The console that shows the line; None for standard error.
    """

    def __init__(self, attacks: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        super().__init__(bar)
        self._line = bar.add_task("opening the run", total=None)
        self._attacks, self._names = attacks, list[str]()

    def began(self, attack: str, adversary: str) -> None:
        """Shows that an attack by an adversary begins."""
        if attack not in self._names:
            self._names.append(attack)
        place = f"{len(self._names)} of {self._attacks}"
        self._bar.update(self._line, description=f"attack {place}: {attack}, {adversary}")
